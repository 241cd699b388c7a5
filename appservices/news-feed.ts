import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** An event as it was announced. */
export interface News {
  readonly pos: number;
  readonly event: StoredEvent;
  /** A local user's membership in a room that this server is not in. */
  readonly outOfBand: boolean;
}

export interface Portion {
  readonly news: readonly News[];
  /** There is nothing else up to this position. */
  readonly upTo: number;
}

/** Events kept in memory: a service that is not further behind asks no table. */
const MAX_TAIL = 2_000;

/** The stream of events for all application services, each of which reads from a position of its own. */
export class NewsFeed {
  readonly #rooms: Rooms;
  readonly #tail: News[] = [];
  /** The tail has everything after this position. */
  #tailFrom: number;

  /** @param onNews called for every event. @param isRead whether anybody reads; else nothing is kept */
  constructor(rooms: Rooms, onNews: () => void, isRead: () => boolean = () => true) {
    this.#rooms = rooms;
    const { stream } = rooms.parts;
    this.#tailFrom = stream.current;
    const follow = (pos: number, { event, outOfBand, resynced }: EventChange) => {
      // An event that was news before.
      if (resynced) return;
      if (!isRead()) {
        this.#begin(pos);
        return;
      }
      this.#tail.push({ pos, event, outOfBand });
      if (this.#tail.length > MAX_TAIL)
        for (const old of this.#tail.splice(0, MAX_TAIL / 2)) this.#tailFrom = old.pos;
      onNews();
    };
    stream.subscribe(follow, ({ to }) => {
      this.#begin(to);
      onNews();
    });
  }

  /** What is older is read from the tables. */
  #begin(pos: number): void {
    this.#tail.length = 0;
    this.#tailFrom = pos;
  }

  get current(): number {
    return this.#rooms.parts.stream.current;
  }

  /** What comes after a position, at the most `limit` events, in their order. */
  async read(after: number, limit: number): Promise<Portion> {
    if (after < this.#tailFrom) return this.#stored(after, limit);
    const begin = this.#indexAfter(after);
    const news = this.#tail.slice(begin, begin + limit);
    const all = begin + limit >= this.#tail.length;
    return { news, upTo: all ? Math.max(after, this.current) : news.at(-1)!.pos };
  }

  #indexAfter(pos: number): number {
    let [low, high] = [0, this.#tail.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tail[middle]!.pos <= pos) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  async #stored(after: number, limit: number): Promise<Portion> {
    const end = this.current;
    const events = await this.#rooms.parts.events.newsAfter(after, end, limit);
    const upTo = events.length < limit ? end : events.at(-1)!.pos!;
    const placed = events.map((event) => ({ pos: event.pos!, event, outOfBand: false }));
    const elsewhere = await this.#outOfBand(after, upTo);
    if (elsewhere.length === 0) return { news: placed, upTo };
    return { news: [...placed, ...elsewhere].sort((a, b) => a.pos - b.pos), upTo };
  }

  async #outOfBand(after: number, upTo: number): Promise<News[]> {
    const { db, events, serverName } = this.#rooms.parts;
    const rows = await db.query<{ userId: string; pos: number; eventId: string }>(
      {
        name: 'appservice-out-of-band',
        text: `SELECT m.user_id AS "userId", m.pos, m.event_id AS "eventId"
               FROM room_members m JOIN events e ON e.event_id = m.event_id
               WHERE m.pos > $1 AND m.pos <= $2 AND e.pos IS NULL ORDER BY m.pos LIMIT 10000`,
      },
      [after, upTo],
    );
    const local = rows.filter(({ userId }) => serverNameOf(userId) === serverName);
    const found = await events.getMany(local.map(({ eventId }) => eventId));
    return local.flatMap(({ pos, eventId }) => {
      const event = found.get(eventId);
      return event ? [{ pos, event, outOfBand: true }] : [];
    });
  }
}
