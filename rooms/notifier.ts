import { setTimeout as delay } from 'node:timers/promises';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Stream, Streams } from '@trellis/storage/streams.ts';
import { FeedRooms } from './feed-rooms.ts';
import type { EventChange, Rooms } from './rooms.ts';

/** Where a reader of all streams stands. What a sync token says. */
export interface Positions {
  readonly events: number;
  readonly accountData: number;
  readonly receipts: number;
  readonly typing: number;
  readonly toDevice: number;
  readonly deviceLists: number;
  readonly presence: number;
}

export type StreamName = keyof Positions;

/**
 * Streams whose changes name the users that they concern. Changes of device lists and of presence concern whoever
 * shares a room with the one who changed; a sync asks those streams' own tails.
 */
export type FeedStream = Exclude<StreamName, 'deviceLists' | 'presence'>;

/** A change that concerns one user: in which stream, where, and which room, when it is of one. */
export interface FeedEntry {
  readonly stream: FeedStream;
  readonly pos: number;
  readonly roomId: string | null;
}

/** Entries kept for a user at the most; older ones are dropped, and readers from before them go to the database. */
const MAX_ENTRIES = 2_000;

/**
 * What lately changed for one user, in the order of the streams: an incremental sync reads this instead of asking
 * every room and table. Complete for positions at and after `since`.
 */
export class UserFeed {
  /** For each stream the position from which on the feed is complete. */
  readonly since: Record<FeedStream, number>;
  readonly #entries: FeedEntry[] = [];
  readonly waiters = new Set<() => void>();
  /** Resolves once the feed is complete from somewhere on. */
  ready: Promise<void> | undefined;

  constructor(since: Positions) {
    this.since = { ...since };
  }

  /** From here on it is complete. */
  begin(since: Positions): void {
    for (const stream of FEED_STREAMS) this.since[stream] = since[stream];
  }

  /** It is complete no more, from nowhere on: who reads it goes to the database. */
  end(): void {
    for (const stream of FEED_STREAMS) this.since[stream] = Number.POSITIVE_INFINITY;
    this.wake();
  }

  add(entry: FeedEntry): void {
    this.#entries.push(entry);
    if (this.#entries.length > MAX_ENTRIES)
      for (const old of this.#entries.splice(0, MAX_ENTRIES / 2))
        this.since[old.stream] = Math.max(this.since[old.stream], old.pos);
    this.wake();
  }

  wake(): void {
    for (const waiter of this.waiters) waiter();
  }

  /** Whether the feed tells all that happened after these positions. */
  covers(positions: Positions): boolean {
    for (const stream of FEED_STREAMS) if (positions[stream] < this.since[stream]) return false;
    return true;
  }

  /** Whether anything happened after these positions. */
  hasNews(positions: Positions): boolean {
    return this.#entries.some((entry) => entry.pos > positions[entry.stream]);
  }

  /** What happened in the half-open interval (from, to], oldest first. */
  between(from: Positions, to: Positions): FeedEntry[] {
    return this.#entries.filter((entry) => entry.pos > from[entry.stream] && entry.pos <= to[entry.stream]);
  }
}

const FEED_STREAMS: readonly FeedStream[] = ['events', 'accountData', 'receipts', 'typing', 'toDevice'];

/** How long this process is waited for when it is behind another, and how often is looked, in milliseconds. */
const MAX_BEHIND = 5_000;
const BEHIND_STEP = 2;

/** Users whose feeds are kept when nobody waits on them. */
const MAX_FEEDS = 20_000;

/** Who is in which rooms: `Memberships`. */
export interface SharedRooms {
  /** Local users who share a joined room with the user, the user included. */
  localUsersSharingRoomWith(userId: string): Promise<Iterable<string>>;
  joined(userId: string): Promise<readonly string[]>;
  /** The user's rooms, kept up to date, when they are in memory: they are after `joined`, but for rare moments. */
  known(userId: string): ReadonlyMap<string, { readonly membership: string }> | undefined;
}

/** Follows all streams, keeps the feeds of those users who sync, and wakes their long polls. */
export class Notifier {
  readonly #streams: Streams;
  readonly #events: Stream<EventChange>;
  readonly #feeds = new RecentlyUsed<string, UserFeed>(MAX_FEEDS, {
    dispose: (feed) => this.#feedRooms?.end(feed),
  });
  /** Only where other processes append to rooms too. */
  readonly #feedRooms: FeedRooms | undefined;
  readonly #closing = new AbortController();
  readonly #shared: SharedRooms;
  readonly #rooms: Rooms;

  constructor(rooms: Rooms, streams: Streams, shared: SharedRooms) {
    this.#streams = streams;
    this.#shared = shared;
    this.#rooms = rooms;
    this.#events = rooms.parts.stream;
    if (rooms.parts.cluster.shared) this.#feedRooms = new FeedRooms();
    const restart = () => this.#restart();
    this.#events.subscribe((pos, change) => this.#onEvent(pos, change), restart);
    streams.accountData.subscribe(
      (pos, { userId, roomId }) => this.#add(userId, { stream: 'accountData', pos, roomId }),
      restart,
    );
    streams.toDevice.subscribe(
      (pos, { userId }) => this.#add(userId, { stream: 'toDevice', pos, roomId: null }),
      restart,
    );
    streams.receipts.subscribe((pos, { roomId, userId, type }) => {
      const entry: FeedEntry = { stream: 'receipts', pos, roomId };
      if (type === 'm.read.private') this.#add(userId, entry);
      else this.#addToMembers(entry, roomId);
    }, restart);
    streams.typing.subscribe(
      (pos, { roomId }) => this.#addToMembers({ stream: 'typing', pos, roomId }, roomId),
      restart,
    );
    streams.deviceLists.subscribe((_pos, { userId }) => this.wakeSharers(userId), restart);
    streams.presence.subscribe((_pos, { userId }) => this.wakeSharers(userId), restart);
  }

  #onEvent(pos: number, { roomId, outOfBand, memberships }: EventChange): void {
    const entry: FeedEntry = { stream: 'events', pos, roomId };
    if (this.#feedRooms)
      for (const { userId, after } of memberships) {
        const feed = this.#feeds.get(userId);
        if (feed && after === 'join') this.#feedRooms.join(feed, roomId);
        else if (feed) this.#feedRooms.leave(feed, roomId);
      }
    if (!outOfBand) this.#addToMembers(entry, roomId);
    // Those who are joined now have just been told; invited, left, banned ones hear of their own change.
    for (const { userId, after } of memberships) if (after !== 'join' || outOfBand) this.#add(userId, entry);
  }

  /** Tells local users who are in the room. */
  #addToMembers(entry: FeedEntry, roomId: string): void {
    if (this.#feedRooms) for (const feed of this.#feedRooms.in(roomId)) feed.add(entry);
    else for (const userId of this.#rooms.peek(roomId)?.joinedHere ?? []) this.#add(userId, entry);
  }

  /**
   * Changes may have been missed: no feed is complete any more, and everybody who waits looks in the database. New
   * feeds begin from now.
   */
  #restart(): void {
    const feeds = [...this.#feeds.values()];
    this.#feeds.clear();
    for (const feed of feeds) feed.end();
  }

  /** Wakes the syncs of local users who share a room with the user, for what they have to look up themselves. */
  wakeSharers(userId: string): void {
    // Those who would have been woken find the change with their next sync.
    this.#wakeSharers(userId).catch(() => {});
  }

  async #wakeSharers(userId: string): Promise<void> {
    if (this.#feedRooms) {
      this.#feeds.get(userId)?.wake();
      for (const roomId of await this.#shared.joined(userId))
        for (const feed of this.#feedRooms.in(roomId)) feed.wake();
      return;
    }
    for (const other of await this.#shared.localUsersSharingRoomWith(userId)) this.#feeds.get(other)?.wake();
  }

  /** Where all streams stand now. */
  positions(): Positions {
    return {
      events: this.#events.current,
      accountData: this.#streams.accountData.current,
      receipts: this.#streams.receipts.current,
      typing: this.#streams.typing.current,
      toDevice: this.#streams.toDevice.current,
      deviceLists: this.#streams.deviceLists.current,
      presence: this.#streams.presence.current,
    };
  }

  /**
   * Waits until this process has heard of all up to there, within limits. Whoever was told of positions by another
   * process may be ahead of this one: an answer from before them would tell again what was told.
   */
  async reach(positions: Partial<Positions>): Promise<void> {
    if (!this.#rooms.parts.cluster.shared) return;
    const wanted = Object.entries(positions) as Array<[StreamName, number]>;
    const until = performance.now() + MAX_BEHIND;
    for (;;) {
      const current = this.positions();
      if (wanted.every(([stream, pos]) => current[stream] >= pos) || performance.now() > until) return;
      await delay(BEHIND_STEP);
    }
  }

  /** The user's feed; begins now when there was none. */
  feed(userId: string): UserFeed {
    let feed = this.#feeds.get(userId);
    if (!feed) {
      feed = new UserFeed(this.positions());
      this.#feeds.set(userId, feed);
      if (this.#feedRooms) {
        feed.end();
        feed.ready = this.#beginWithRooms(userId, feed, this.#feedRooms);
      }
    }
    return feed;
  }

  /** Until it is known where the user is, the feed is complete from nowhere on. */
  async #beginWithRooms(userId: string, feed: UserFeed, feedRooms: FeedRooms): Promise<void> {
    try {
      let known: ReturnType<SharedRooms['known']>;
      while (!known) {
        await this.#shared.joined(userId);
        if (this.#feeds.peek(userId) !== feed) return;
        known = this.#shared.known(userId);
      }
      const joined = [...known].filter(([, { membership }]) => membership === 'join');
      feedRooms.begin(
        feed,
        joined.map(([roomId]) => roomId),
      );
      feed.begin(this.positions());
    } catch {
      // The next sync tries again.
      if (this.#feeds.peek(userId) === feed) this.#feeds.delete(userId);
    }
  }

  /**
   * Waits until something happens after `positions` that may concern the user, at the most `timeoutMs`.
   * Returns at once when it happened already, when `signal` aborts, or when the server closes. The caller looks
   * whether there is something to tell, and waits again with its newer positions when there is not.
   */
  async wait(userId: string, positions: Positions, timeoutMs: number, signal: AbortSignal): Promise<void> {
    const feed = this.feed(userId);
    await feed.ready;
    // Who is concerned by these is found out only while others wait, so whoever comes later looks for themselves.
    const unseen =
      positions.deviceLists < this.#streams.deviceLists.current ||
      positions.presence < this.#streams.presence.current;
    if (
      unseen ||
      !feed.covers(positions) ||
      feed.hasNews(positions) ||
      timeoutMs <= 0 ||
      signal.aborted ||
      this.closing
    )
      return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timeoutMs);
    feed.waiters.add(resolve);
    signal.addEventListener('abort', () => resolve(), { once: true });
    const close = () => resolve();
    this.#closing.signal.addEventListener('abort', close, { once: true });
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      feed.waiters.delete(resolve);
      this.#closing.signal.removeEventListener('abort', close);
    }
  }

  /** The server stops: nobody is to wait any more. */
  get closing(): boolean {
    return this.#closing.signal.aborted;
  }

  onClosing(listener: () => void): void {
    this.#closing.signal.addEventListener('abort', listener, { once: true });
  }

  /** Answers all long polls: the server stops. */
  close(): void {
    this.#closing.abort();
  }

  /** Lets one user's syncs know of something that is announced to nobody else. */
  tell(userId: string, entry: FeedEntry): void {
    this.#add(userId, entry);
  }

  #add(userId: string, entry: FeedEntry): void {
    this.#feeds.get(userId)?.add(entry);
  }
}
