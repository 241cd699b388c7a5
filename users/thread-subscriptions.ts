import type { Cluster } from '@trellis/cluster/cluster.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { KeyedQueue } from './keyed-queue.ts';
import { lockedWrite } from './locked-write.ts';
import { ReadThroughCache } from './read-through-cache.ts';

export interface ThreadSubscription {
  readonly roomId: string;
  /** Event id of the thread's root. */
  readonly thread: string;
  /** `false`: the user unsubscribed. */
  readonly subscribed: boolean;
  /** A client did it on account of a mention. */
  readonly automatic: boolean;
  /** Where the stream of events stood when the user last unsubscribed. */
  readonly unsubscribedAt: number | null;
  /** Position in the stream of account data. */
  readonly pos: number;
}

export interface ThreadSubscriptionsDeps {
  readonly db: Database;
  readonly stream: Stream<AccountDataChange>;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

/** How the stream of account data, which thread subscriptions share, names them. */
const CHANGE = 'io.element.msc4306.thread_subscription';

const MAX_CACHED = 50_000;
/** Threads kept for a user; of more, those that changed longest ago are forgotten. */
const MAX_THREADS = 10_000;

/** By `keyOf`, in the order of their last changes. */
type Threads = Map<string, ThreadSubscription>;

const NO_THREADS: ReadonlyMap<string, ThreadSubscription> = new Map();

/**
 * Which threads users follow (MSC4306). All of a user's are kept in memory once asked for: push rules ask for each
 * event of a thread.
 */
export class ThreadSubscriptions {
  readonly #db: Database;
  readonly #stream: Stream<AccountDataChange>;
  readonly #queue = new KeyedQueue();
  readonly #shared: boolean;
  readonly #cache: ReadThroughCache<Threads>;

  constructor({ db, stream, cluster }: ThreadSubscriptionsDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#cache = new ReadThroughCache(MAX_CACHED, (userId) => this.#read(this.#db, userId), {
      cluster,
      name: 'threads',
    });
    this.#shared = cluster?.shared ?? false;
    if (this.#shared)
      stream.subscribe((_pos, { userId, type }) => {
        if (type === CHANGE) this.#cache.drop(userId);
      });
  }

  async get(userId: string, roomId: string, thread: string): Promise<ThreadSubscription | undefined> {
    const found = (await this.#of(userId)).get(keyOf(roomId, thread));
    return found?.subscribed ? found : undefined;
  }

  /**
   * What push rules look at. `undefined` for users who never followed a thread: their clients know nothing of it, and
   * must not lose the notifications of threads. At once when it is in memory.
   */
  subscribedTo(userId: string): SubscribedTo | undefined | Promise<SubscribedTo | undefined> {
    const found = this.#cache.get(userId);
    return found instanceof Promise ? found.then(testOf) : testOf(found);
  }

  /**
   * @param causePos place of the event that made a client subscribe the user; `undefined` when the user did it
   * @returns `false` when the user has unsubscribed since that event
   */
  subscribe(userId: string, roomId: string, thread: string, causePos: number | undefined): Promise<boolean> {
    return this.#change(userId, async (threads, store) => {
      const current = threads.get(keyOf(roomId, thread));
      const automatic = causePos !== undefined;
      if (current?.subscribed && (automatic || !current.automatic)) return true;
      const unsubscribedAt = current?.unsubscribedAt ?? null;
      if (automatic && unsubscribedAt !== null && causePos <= unsubscribedAt) return false;
      await store({ roomId, thread, subscribed: true, automatic, unsubscribedAt });
      return true;
    });
  }

  /** @param eventsPos where the stream of events stands */
  unsubscribe(userId: string, roomId: string, thread: string, eventsPos: number): Promise<void> {
    return this.#change(userId, async (threads, store) => {
      const current = threads.get(keyOf(roomId, thread));
      if (!current?.subscribed) return;
      await store({
        roomId,
        thread,
        subscribed: false,
        automatic: false,
        unsubscribedAt: eventsPos,
      });
    });
  }

  /** The newest changes at positions (from, to], newest first. Without `from` only what is subscribed. */
  async changes(
    userId: string,
    range: { readonly from: number | undefined; readonly to: number; readonly limit: number },
  ): Promise<{ changes: ThreadSubscription[]; more: boolean }> {
    const { from, to, limit } = range;
    const changes = [...(await this.#of(userId)).values()]
      .filter(({ pos, subscribed }) => pos <= to && (from === undefined ? subscribed : pos > from))
      .sort((a, b) => b.pos - a.pos);
    return { changes: changes.slice(0, limit), more: changes.length > limit };
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM thread_subscriptions WHERE user_id = $1', [userId]);
    await this.#cache.forget(userId);
  }

  async #of(userId: string): Promise<ReadonlyMap<string, ThreadSubscription>> {
    return (await this.#cache.get(userId)) ?? NO_THREADS;
  }

  /** Changes of a user's subscriptions come one after the other, whichever process makes them. */
  #change<T>(
    userId: string,
    work: (threads: ReadonlyMap<string, ThreadSubscription>, store: Store) => Promise<T>,
  ): Promise<T> {
    return this.#queue.run(userId, async () => {
      if (!this.#shared)
        return work(await this.#of(userId), (subscription) => this.#store(userId, subscription));
      return lockedWrite(this.#db, this.#stream, `threads ${userId}`, async (tx, announce) => {
        const threads = await this.#read(tx, userId);
        return work(threads, async (subscription) => {
          const pos = await announce({ userId, roomId: null, type: CHANGE });
          await insert(tx, userId, subscription, pos);
          threads.set(keyOf(subscription.roomId, subscription.thread), { ...subscription, pos });
          if (threads.size > MAX_THREADS) await dropOldest(tx, userId, threads);
        });
      });
    });
  }

  async #store(userId: string, subscription: Omit<ThreadSubscription, 'pos'>): Promise<void> {
    await this.#stream.write([{ userId, roomId: null, type: CHANGE }], async (pos) => {
      await insert(this.#db, userId, subscription, pos);
      const threads = this.#cache.peek(userId);
      // What is being read now may lack this.
      if (!threads) return this.#cache.drop(userId);
      const key = keyOf(subscription.roomId, subscription.thread);
      threads.delete(key);
      threads.set(key, { ...subscription, pos });
      if (threads.size > MAX_THREADS) await dropOldest(this.#db, userId, threads);
    });
  }

  async #read(db: Queryable, userId: string): Promise<Threads> {
    const rows = await db.query<ThreadSubscription>(
      {
        name: 'thread-subscriptions',
        text: `SELECT room_id AS "roomId", thread, subscribed, automatic, unsubscribed_at AS "unsubscribedAt", pos
               FROM thread_subscriptions WHERE user_id = $1 ORDER BY pos`,
      },
      [userId],
    );
    return new Map(rows.map((row) => [keyOf(row.roomId, row.thread), row]));
  }
}

type Store = (subscription: Omit<ThreadSubscription, 'pos'>) => Promise<void>;

async function insert(
  db: Queryable,
  userId: string,
  subscription: Omit<ThreadSubscription, 'pos'>,
  pos: number,
): Promise<void> {
  const { roomId, thread, subscribed, automatic, unsubscribedAt } = subscription;
  await db.query(
    `INSERT INTO thread_subscriptions (user_id, room_id, thread, subscribed, automatic, unsubscribed_at, pos)
     VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (user_id, room_id, thread) DO UPDATE SET subscribed = EXCLUDED.subscribed,
       automatic = EXCLUDED.automatic, unsubscribed_at = EXCLUDED.unsubscribed_at, pos = EXCLUDED.pos`,
    [userId, roomId, thread, subscribed, automatic, unsubscribedAt, pos],
  );
}

async function dropOldest(db: Queryable, userId: string, threads: Threads): Promise<void> {
  const [oldest] = threads;
  if (!oldest) return;
  threads.delete(oldest[0]);
  await db.query('DELETE FROM thread_subscriptions WHERE user_id = $1 AND room_id = $2 AND thread = $3', [
    userId,
    oldest[1].roomId,
    oldest[1].thread,
  ]);
}

export type SubscribedTo = (roomId: string, thread: string) => boolean;

function testOf(threads: Threads | undefined): SubscribedTo | undefined {
  if (!threads || threads.size === 0) return undefined;
  return (roomId, thread) => threads.get(keyOf(roomId, thread))?.subscribed === true;
}

function keyOf(roomId: string, thread: string): string {
  return `${roomId} ${thread}`;
}
