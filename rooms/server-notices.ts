import type { JsonObject } from '@trellis/protocol/event.ts';
import type { CreateRoomRequest } from './create-room.ts';
import { Lock } from './lock.ts';
import type { Membership } from './membership.ts';
import type { Memberships } from './memberships.ts';
import type { Rooms } from './rooms.ts';
import { sendEvent } from './send.ts';

/** The tag by which clients know the room of notices (spec: "Server Notices"). */
const NOTICES_TAG = 'm.server_notice';

export interface Notice {
  readonly type: string;
  readonly stateKey?: string;
  readonly content: JsonObject;
}

export interface ServerNoticesParts {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly membership: Pick<Membership, 'invite'>;
  /** The user that notices come from; nobody can log in as it. */
  readonly sender: string;
  readonly roomName: string;
  readonly createRoom: (creator: string, request: CreateRoomRequest) => Promise<string>;
  readonly setTag: (userId: string, roomId: string, tag: string) => Promise<void>;
}

/** Sends what the server's administrators have to say to a user, in one room for each (spec: "Server Notices"). */
export class ServerNotices {
  readonly #parts: ServerNoticesParts;
  /** Two notices at a time must not make two rooms: each user's are looked for and made by one process. */
  readonly #lock = new Lock();

  constructor(parts: ServerNoticesParts) {
    this.#parts = parts;
    parts.rooms.parts.cluster.serve(
      'server-notices.room',
      (_none, userId) => this.#lock.run(() => this.#roomFor(userId)),
      { drained: false },
    );
  }

  /** @returns the id of the event */
  async send(userId: string, notice: Notice): Promise<string> {
    const { rooms, sender } = this.#parts;
    const { cluster } = rooms.parts;
    const roomId = await cluster.call<string>('user', userId, 'server-notices.room', null);
    return (await sendEvent(rooms, roomId, { ...notice, sender })).eventId;
  }

  /** The user's room, made if there is none, with the user in it or invited. */
  async #roomFor(userId: string): Promise<string> {
    const { membership, memberships, setTag } = this.#parts;
    const roomId = (await this.#existingRoom(userId)) ?? (await this.#create());
    const current = (await memberships.of(userId)).get(roomId)?.membership;
    if (current === 'join' || current === 'invite') return roomId;
    // Tagged first, so that no client takes the invite for another.
    await setTag(userId, roomId, NOTICES_TAG);
    await membership.invite(roomId, this.#parts.sender, userId);
    return roomId;
  }

  /** The sender goes into no room but those that it makes. */
  async #existingRoom(userId: string): Promise<string | undefined> {
    const { memberships, sender } = this.#parts;
    for (const { roomId, membership } of (await memberships.of(userId)).values())
      if (membership !== 'ban' && (await memberships.isJoined(sender, roomId))) return roomId;
    return undefined;
  }

  #create(): Promise<string> {
    const { createRoom, roomName, sender } = this.#parts;
    return createRoom(sender, {
      preset: 'private_chat',
      name: roomName,
      creation_content: { 'm.federate': false },
      // The server speaks there, and nobody is brought in but by it.
      power_level_content_override: { users_default: -10 },
    });
  }
}
