import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { PushEvaluation } from './push-evaluation.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { threadOf } from './thread-of.ts';
import {
  NOTHING_UNREAD,
  type ReadUpTo,
  readPosition,
  UnreadCounter,
  type UnreadCounts,
} from './unread-counter.ts';
import { UnreadStore } from './unread-store.ts';

/** How far local users have read. Implemented by `users/`. */
export interface ReadPositions {
  /** Another object whenever it has changed. At once when it is in memory. */
  readUpTo(userId: string, roomId: string): ReadUpTo | Promise<ReadUpTo>;
}

export interface UnreadDeps {
  readonly rooms: Rooms;
  readonly evaluation: PushEvaluation;
  readonly reads: ReadPositions;
}

const MAX_USERS = 20_000;
/** Events of a room looked at for one count, newest first. Whoever has more unread sees a count that is too low. */
const MAX_SCAN = 5_000;
const PAGE = 500;
/** A counter is stored when it has looked at so many events since; at the end, from so many on. */
const SAVE_AFTER = 200;
const SAVE_AT_END_AFTER = 20;

interface Entry {
  readonly counter: UnreadCounter;
  readonly roomNid: number;
  /** Being brought up to date. */
  work?: Promise<void> | undefined;
}

type Counters = Map<string, Entry>;

/**
 * Unread counts (spec: "Receiving notifications").
 *
 * Nothing is written or counted when an event arrives: a row or even a step for each of a thousand members would cost
 * more than the event. Instead each user's counter stands at a position of the stream, and is brought up to the
 * present when the user syncs: by evaluating the user's push rules on what is new, nearly always one event in memory
 * that is laid out for all users once. Everything follows from events, receipts and memberships, all of which are
 * safely stored, so the counters are but a short cut: now and then they are stored with their position, so that after
 * a restart the counting need not begin at the last receipt. A stored counter is never wrong, only old.
 *
 * Rules that a user changes hold for events counted from then on.
 */
export class Unread {
  readonly #rooms: Rooms;
  readonly #evaluation: PushEvaluation;
  readonly #reads: ReadPositions;
  readonly #store: UnreadStore;
  readonly #users: RecentlyUsed<string, Counters>;
  readonly #loading = new Map<string, Promise<Counters>>();

  constructor({ rooms, evaluation, reads }: UnreadDeps) {
    this.#rooms = rooms;
    this.#evaluation = evaluation;
    this.#reads = reads;
    this.#store = new UnreadStore(rooms.parts.db);
    this.#users = new RecentlyUsed(MAX_USERS, {
      dispose: (counters, userId) => void this.#save(userId, counters),
    });
  }

  async counts(userId: string, roomId: string): Promise<UnreadCounts> {
    const room = this.#rooms.peek(roomId) ?? (await this.#rooms.get(roomId));
    const member = room?.member(userId);
    if (!room || member?.membership !== 'join') return NOTHING_UNREAD;
    let read = this.#reads.readUpTo(userId, roomId);
    let counters = this.#users.get(userId) ?? this.#load(userId);
    if (read instanceof Promise || counters instanceof Promise)
      [read, counters] = await Promise.all([read, counters]);
    let known = counters.get(roomId);
    if (known?.counter.joinedPos !== member.pos) {
      const counter = new UnreadCounter(member.pos, Math.max(member.pos, read.unthreaded));
      known = { counter, roomNid: room.nid };
      counters.set(roomId, known);
    }
    const entry = known;
    const { counter } = entry;
    if (isCurrent(counter, room, read)) return counter.shown;
    // Another of the user's devices may be at it; what it did not see yet is counted after that.
    if (entry.work) await entry.work;
    if (!isCurrent(counter, room, read)) {
      entry.work ??= this.#bringUpToDate(counter, room, userId).finally(() => {
        entry.work = undefined;
      });
      await entry.work;
    }
    if (counter.unsaved >= SAVE_AFTER) void this.#store.save(userId, room.nid, counter);
    return counter.shown;
  }

  /** Stores what would take long to count again. */
  async close(): Promise<void> {
    await Promise.all([...this.#users.entries()].map(([userId, counters]) => this.#save(userId, counters)));
  }

  async #bringUpToDate(counter: UnreadCounter, room: Room, userId: string): Promise<void> {
    const to = this.#rooms.parts.stream.current;
    const read = await this.#reads.readUpTo(userId, room.roomId);
    const news = await this.#eventsBetween(room, counter.pos, to);
    // Redacted events stop counting. What kind of event it was is no longer known, so all is counted again.
    const again =
      counter.oldest !== undefined && news.some((event) => this.#mayRedactCounted(event, counter.oldest!))
        ? { from: counter.oldest - 1, threads: counter.clear() }
        : { from: undefined, threads: counter.takeOff(read) };
    if (again.threads.size > 0) {
      const from = again.from ?? Math.min(...[...again.threads].map((thread) => readPosition(read, thread)));
      const old = await this.#eventsBetween(room, from, counter.pos);
      await this.#count(counter, room, userId, old, read, again.threads);
    }
    await this.#count(counter, room, userId, news, read);
    counter.read = read;
    counter.pos = to;
    counter.lastEvent = news.at(-1)?.pos ?? counter.lastEvent;
    counter.unsaved += news.length;
  }

  /** @param only threads that are to be counted; all when left out */
  async #count(
    counter: UnreadCounter,
    room: Room,
    userId: string,
    events: readonly StoredEvent[],
    read: ReadUpTo,
    only?: ReadonlySet<string>,
  ): Promise<void> {
    if (events.length === 0) return;
    const evaluate = await this.#evaluation.forUser(room, userId);
    for (const event of events) {
      const pos = event.pos!;
      if (event.backfilled || pos <= read.unthreaded) continue;
      const found = threadOf(this.#rooms.parts.events, event);
      // Whoever sends an event has read up to it (spec: push, "Receiving notifications").
      if (event.sender === userId) counter.readThread(await found);
      if (event.sender === userId || event.redactedBy) continue;
      // Of what relates to others only the few that notify are worth a search for their thread.
      let thread = typeof found === 'string' ? found : undefined;
      if (thread !== undefined && (pos <= readPosition(read, thread) || only?.has(thread) === false))
        continue;
      const { notify, highlight } = evaluate(event);
      if (!notify) continue;
      thread ??= await found;
      if (pos > readPosition(read, thread) && only?.has(thread) !== false)
        counter.add(thread, pos, highlight);
    }
  }

  #mayRedactCounted(event: StoredEvent, oldest: number): boolean {
    if (event.type !== 'm.room.redaction' || event.redacts === undefined) return false;
    const target = this.#rooms.parts.events.cached(event.redacts);
    return target?.pos === undefined || target.pos >= oldest;
  }

  /** The room's events at positions (after, to], oldest first; the newest of them when there are too many. */
  async #eventsBetween(room: Room, after: number, to: number): Promise<readonly StoredEvent[]> {
    if (after >= to) return [];
    const recent = room.timeline.between(after, to, MAX_SCAN);
    if (recent) return recent.events;
    const events: StoredEvent[] = [];
    for (let before = to + 1; events.length < MAX_SCAN; before = events.at(-1)!.pos!) {
      const page = await this.#rooms.parts.events.timeline(room.nid, {
        after,
        before,
        direction: 'backward',
        limit: PAGE,
      });
      events.push(...page);
      if (page.length < PAGE) break;
    }
    return events.reverse();
  }

  #load(userId: string): Promise<Counters> {
    let loading = this.#loading.get(userId);
    if (!loading) {
      loading = this.#store
        .load(userId)
        .then((counters) => {
          this.#users.set(userId, counters);
          return counters;
        })
        .finally(() => this.#loading.delete(userId));
      this.#loading.set(userId, loading);
    }
    return loading;
  }

  async #save(userId: string, counters: Counters): Promise<void> {
    await Promise.all(
      [...counters.values()].map(({ counter, roomNid }) =>
        counter.unsaved >= SAVE_AT_END_AFTER ? this.#store.save(userId, roomNid, counter) : undefined,
      ),
    );
  }
}

/** Nothing happened since that could change the counts. */
function isCurrent(counter: UnreadCounter, room: Room, read: ReadUpTo): boolean {
  const newest = room.timeline.newest?.pos;
  return counter.read === read && (newest === undefined || newest <= counter.pos);
}
