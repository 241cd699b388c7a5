import { MatrixError } from '@trellis/protocol/errors.ts';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { followMissed } from './missed-events.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

export interface Guests {
  isGuest(userId: string): Promise<boolean>;
  leave(roomId: string, userId: string): Promise<void>;
}

/** Whether the room admits guests (spec: "Guest Access"). */
export async function admitsGuests(rooms: Rooms, room: Room): Promise<boolean> {
  const ref = room.state.get('m.room.guest_access', '');
  const event = ref && (await rooms.parts.events.get(ref.eventId));
  return event?.content.guest_access === 'can_join';
}

/** Takes local guests out of rooms that no longer admit them. */
export class GuestAccess {
  readonly #rooms: Rooms;
  readonly #guests: Guests;

  constructor(rooms: Rooms, guests: Guests, onError: (error: unknown) => void) {
    this.#rooms = rooms;
    this.#guests = guests;
    const follow = ({ roomId, type, stateKey }: RoomEvent) => {
      if (type === 'm.room.guest_access' && stateKey === '') this.#removeGuests(roomId).catch(onError);
    };
    rooms.parts.stream.subscribe((_pos, { event, outOfBand, isFromElsewhere }) => {
      if (!outOfBand && !isFromElsewhere) follow(event);
    });
    followMissed(rooms, follow, onError);
  }

  async #removeGuests(roomId: string): Promise<void> {
    const room = await this.#rooms.get(roomId);
    if (!room || (await admitsGuests(this.#rooms, room))) return;
    for (const userId of [...room.joinedHere]) {
      if (!(await this.#guests.isGuest(userId))) continue;
      await this.#guests.leave(roomId, userId).catch((error: unknown) => {
        if (!(error instanceof MatrixError)) throw error;
      });
    }
  }
}
