import type { UserFeed } from './notifier.ts';

/**
 * Which of the users who sync here are in which rooms. With several processes an event may be of a room that is not
 * live in this one, so that the room can't be asked for its members.
 */
export class FeedRooms {
  readonly #feeds = new Map<string, Set<UserFeed>>();
  readonly #rooms = new Map<UserFeed, Set<string>>();

  begin(feed: UserFeed, roomIds: Iterable<string>): void {
    this.#rooms.set(feed, new Set());
    for (const roomId of roomIds) this.join(feed, roomId);
  }

  end(feed: UserFeed): void {
    for (const roomId of this.#rooms.get(feed) ?? []) this.#remove(feed, roomId);
    this.#rooms.delete(feed);
  }

  /** Nothing for a feed that has not begun: it begins with all of its user's rooms. */
  join(feed: UserFeed, roomId: string): void {
    const rooms = this.#rooms.get(feed);
    if (!rooms) return;
    rooms.add(roomId);
    const feeds = this.#feeds.get(roomId);
    if (feeds) feeds.add(feed);
    else this.#feeds.set(roomId, new Set([feed]));
  }

  leave(feed: UserFeed, roomId: string): void {
    if (this.#rooms.get(feed)?.delete(roomId)) this.#remove(feed, roomId);
  }

  /** The feeds of users who are joined to the room. */
  in(roomId: string): Iterable<UserFeed> {
    return this.#feeds.get(roomId) ?? [];
  }

  #remove(feed: UserFeed, roomId: string): void {
    const feeds = this.#feeds.get(roomId);
    feeds?.delete(feed);
    if (feeds?.size === 0) this.#feeds.delete(roomId);
  }
}
