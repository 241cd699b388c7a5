import { LRUCache } from 'lru-cache';

/** Users of a room whose member events a connection has got. Losing it only sends them again. */
type SentMembers = LRUCache<string, Set<string>>;

const CONNECTIONS = 2_000;
const ROOMS = 500;
const MEMBERS = 1_000;

/** Which member events a device has been sent, so that lazy loading need not repeat them (spec: `include_redundant_members`). */
export class LazyMembers {
  readonly #connections = new LRUCache<string, SentMembers>({ max: CONNECTIONS });

  sent(userId: string, deviceId: string, roomId: string): ReadonlySet<string> | undefined {
    return this.#connections.get(`${userId} ${deviceId}`)?.get(roomId);
  }

  remember(userId: string, deviceId: string, roomId: string, members: Iterable<string>): void {
    const key = `${userId} ${deviceId}`;
    let rooms = this.#connections.get(key);
    if (!rooms) {
      rooms = new LRUCache({ max: ROOMS });
      this.#connections.set(key, rooms);
    }
    let sent = rooms.get(roomId);
    if (!sent || sent.size > MEMBERS) {
      sent = new Set();
      rooms.set(roomId, sent);
    }
    for (const member of members) sent.add(member);
  }

  /** The device starts anew: an initial sync. */
  forget(userId: string, deviceId: string): void {
    this.#connections.delete(`${userId} ${deviceId}`);
  }
}
