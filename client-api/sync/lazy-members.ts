import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';

/** Of a room's users those whose member events a connection has been sent, with the position of that answer. */
type SentMembers = Map<string, number>;

const CONNECTIONS = 2_000;
const ROOMS = 500;
const MEMBERS = 1_000;

/**
 * Which member events a device has been sent, so that lazy loading need not repeat them (spec:
 * `include_redundant_members`). Losing it only sends them again.
 */
export class LazyMembers {
  readonly #connections = new RecentlyUsed<string, RecentlyUsed<string, SentMembers>>(CONNECTIONS);

  /**
   * Whether a user's member event has reached the device.
   *
   * @param seen the position that the device syncs from: it may have missed answers that went beyond
   */
  has(userId: string, deviceId: string, roomId: string, member: string, seen: number): boolean {
    const sentAt = this.#connections.get(`${userId} ${deviceId}`)?.get(roomId)?.get(member);
    return sentAt !== undefined && sentAt <= seen;
  }

  /** @param position of the answer that sends the events */
  remember(
    userId: string,
    deviceId: string,
    roomId: string,
    members: Iterable<string>,
    position: number,
  ): void {
    const key = `${userId} ${deviceId}`;
    let rooms = this.#connections.get(key);
    if (!rooms) {
      rooms = new RecentlyUsed(ROOMS);
      this.#connections.set(key, rooms);
    }
    let sent = rooms.get(roomId);
    if (!sent || sent.size > MEMBERS) {
      sent = new Map();
      rooms.set(roomId, sent);
    }
    for (const member of members) sent.set(member, position);
  }

  /** The device starts anew: an initial sync. */
  forget(userId: string, deviceId: string): void {
    this.#connections.delete(`${userId} ${deviceId}`);
  }
}
