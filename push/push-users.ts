import { KeyedQueue } from '@trellis/users/keyed-queue.ts';
import { PusherQueue } from './pusher-queue.ts';
import type { PusherTable } from './pusher-table.ts';

export interface PushUsersDeps {
  readonly table: PusherTable;
  /** Everything up to there has been told to pushers that do not wait. */
  readonly progress: () => number;
  /** A pusher has something to do, or to wait for. */
  readonly onWork: (queue: PusherQueue) => void;
  readonly onError: (error: unknown, userId: string) => void;
}

interface PushUser {
  /** Not in memory when `undefined`: nothing has happened for long. */
  queues: PusherQueue[] | undefined;
  /** News that came while the pushers were being read. */
  early: Map<string, number>;
  loading: number;
  isLost: boolean;
}

interface ReadReason {
  /** A pusher that is not known is to look for what came after this position. */
  readonly mayBeNewAfter?: number;
  readonly hasRead?: boolean;
}

/** Users whose pushers are kept in memory with nothing to do. */
const MAX_LOADED = 20_000;
const RETRY_MS = 5_000;

/** Users with pushers: the names of all, the pushers of those for whom something happens. */
export class PushUsers {
  readonly #deps: PushUsersDeps;
  readonly #users = new Map<string, PushUser>();
  /** Those in memory, the longest there first. */
  readonly #loaded = new Set<PushUser>();
  /** Those whose pushers are being read. */
  readonly #loading = new Set<PushUser>();
  readonly #reads = new KeyedQueue();
  #isClosed = false;

  constructor(deps: PushUsersDeps) {
    this.#deps = deps;
  }

  get isEmpty(): boolean {
    return this.#users.size === 0;
  }

  has(userId: string): boolean {
    return this.#users.has(userId);
  }

  add(userId: string): PushUser {
    let user = this.#users.get(userId);
    if (!user) {
      user = { queues: undefined, early: new Map(), loading: 0, isLost: false };
      this.#users.set(userId, user);
    }
    return user;
  }

  /** Something happened in a room after a position. */
  news(userId: string, roomId: string, after: number): void {
    const user = this.#users.get(userId);
    if (!user) return;
    for (const queue of user.queues ?? []) {
      queue.add(roomId, after);
      this.#deps.onWork(queue);
    }
    if (user.queues && user.loading === 0) return;
    user.early.set(roomId, Math.min(user.early.get(roomId) ?? after, after));
    if (user.loading === 0) this.#load(userId, user);
  }

  /** The user has read something. */
  hasRead(userId: string): void {
    const user = this.#users.get(userId);
    if (!user) return;
    if (!user.queues) {
      if (user.loading === 0) this.#load(userId, user, { hasRead: true });
      return;
    }
    for (const queue of user.queues) noteRead(queue, this.#deps.onWork);
  }

  /**
   * The user's pushers are others than they were, or some of them wait for something.
   *
   * @param after the position at which that was so
   */
  changed(userId: string, after = Number.POSITIVE_INFINITY): void {
    if (this.#isClosed) return;
    const user = this.add(userId);
    for (const queue of user.queues ?? []) queue.isStale = true;
    this.#load(userId, user, { mayBeNewAfter: Math.min(after, this.#deps.progress()) });
  }

  /** What is in memory may not be what the database says any more. */
  reread(): void {
    for (const [userId, user] of this.#users)
      if (user.queues?.every((queue) => queue.isIdle) && user.loading === 0) {
        user.queues = undefined;
        this.#loaded.delete(user);
      } else if (user.queues) this.changed(userId);
  }

  /** These users' pushers are another process's from now on. @returns what was in memory of them */
  release(isLost: (userId: string) => boolean): PusherQueue[] {
    const released: PusherQueue[] = [];
    for (const [userId, user] of this.#users) {
      if (!isLost(userId)) continue;
      this.#users.delete(userId);
      this.#loaded.delete(user);
      user.isLost = true;
      for (const queue of user.queues ?? []) {
        queue.remove();
        released.push(queue);
      }
    }
    return released;
  }

  *withWork(): Generator<PusherQueue> {
    for (const { queues } of this.#loaded)
      for (const queue of queues ?? []) if (queue.hasWork || queue.isWaiting) yield queue;
  }

  /** The position before everything that is outstanding and not noted in the database. */
  outstandingAfter(): number {
    let pos = Number.POSITIVE_INFINITY;
    for (const user of new Set([...this.#loaded, ...this.#loading])) {
      for (const after of user.early.values()) pos = Math.min(pos, after);
      for (const queue of user.queues ?? []) pos = Math.min(pos, queue.outstandingAfter);
    }
    return pos;
  }

  close(): void {
    this.#isClosed = true;
    for (const { queues } of this.#loaded) for (const queue of queues ?? []) queue.remove();
  }

  #load(userId: string, user: PushUser, why: ReadReason = {}): void {
    user.loading++;
    this.#loading.add(user);
    const ended = () => {
      user.loading--;
      if (user.loading === 0) this.#loading.delete(user);
    };
    this.#reads
      .run(userId, () => this.#read(userId, user, why))
      .then(ended, (error: unknown) => {
        this.#deps.onError(error, userId);
        setTimeout(() => {
          if (!this.#isClosed && !user.isLost) this.#load(userId, user, why);
          ended();
        }, RETRY_MS).unref();
      });
  }

  async #read(userId: string, user: PushUser, { mayBeNewAfter, hasRead }: ReadReason): Promise<void> {
    const rows = await this.#deps.table.of(userId);
    if (this.#isClosed || user.isLost) return;
    const known = new Map((user.queues ?? []).map((queue) => [queue.key, queue]));
    user.queues = rows.map((row) => {
      const fresh = new PusherQueue(row);
      const queue = known.get(fresh.key);
      known.delete(fresh.key);
      if (queue) {
        queue.changed(row);
        return queue;
      }
      if (row.dueTs !== null) fresh.isWaiting = true;
      // What happened since a new pusher was set, or one was switched on again, has not been given to it.
      else if (mayBeNewAfter !== undefined) {
        row.pos = Math.max(row.pos, Math.min(mayBeNewAfter, ...user.early.values()));
        fresh.isBehind = true;
      }
      return fresh;
    });
    for (const gone of known.values()) gone.remove();
    for (const queue of user.queues) {
      for (const [roomId, after] of user.early) queue.add(roomId, Math.max(after, queue.row.pos));
      if (hasRead) noteRead(queue, () => {});
    }
    user.early.clear();
    if (user.queues.length === 0 && user.loading === 1) {
      this.#users.delete(userId);
      this.#loaded.delete(user);
      return;
    }
    this.#loaded.delete(user);
    this.#loaded.add(user);
    this.#makeRoom();
    for (const queue of user.queues) this.#deps.onWork(queue);
  }

  #makeRoom(): void {
    let looked = 0;
    for (const user of this.#loaded) {
      if (this.#loaded.size <= MAX_LOADED || looked++ > 100) return;
      this.#loaded.delete(user);
      if (user.loading === 0 && user.queues?.every((queue) => queue.isIdle)) user.queues = undefined;
      else this.#loaded.add(user);
    }
  }
}

/** Less is unread now; and whoever reads can be mailed soon again. */
function noteRead(queue: PusherQueue, onWork: (queue: PusherQueue) => void): void {
  queue.row.mails = 0;
  if (queue.row.kind !== 'http' || queue.isWaiting) return;
  queue.badgeDue = true;
  onWork(queue);
}
