/**
 * Streams: numbered facts that readers follow (see docs/architecture.md, "Streams and positions").
 *
 * A writer reserves a position, stores its fact under it, and completes it. `current` is the highest position
 * below which everything is complete: a reader that has seen up to `current` has missed nothing and will
 * never be shown a lower position later. Listeners hear of changes in the order of their positions.
 *
 * With several processes a `Sequencer` gives the positions and decides when they are announced; each process has its
 * own `Stream` object, which follows.
 */
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Queryable } from './database.ts';

/** To be called in a transaction: it can be committed only while the positions that were given are good. */
export type Guard = (tx: Queryable) => Promise<void>;

/** Gives the positions of a stream that several processes write to. Implemented by `cluster/`. */
export interface Sequencer {
  /**
   * Reserves `count` positions in a row after `gapBefore` that stay free.
   *
   * @returns the first of them
   */
  reserve(stream: string, count: number, gapBefore: number): Promise<number>;
  /** See `Stream.guard`. */
  guard(): Guard;
  /** Ends a reserved position. Resolves once every process has heard of the changes; rejects when they never will. */
  complete(stream: string, position: number, changes: readonly unknown[], isUrgent: boolean): Promise<void>;
}

/** How changes travel between processes: JSON values. */
export interface ChangeCodec<Change> {
  encode(change: Change): unknown;
  decode(json: unknown): Change;
  /** Whether some process may have to act on it at once; else those that nobody asks anything hear of it somewhat later. */
  isUrgent?(change: Change): boolean;
}

/**
 * Positions in (from, to] may hold changes that were not announced, as whoever wrote them has died: listeners find
 * them in the database, or drop what they have made of the changes until then.
 */
export interface StreamGap {
  readonly from: number;
  readonly to: number;
}

interface Listener<Change> {
  readonly change: (position: number, change: Change) => void;
  readonly gap: ((gap: StreamGap) => void) | undefined;
}

const UNGUARDED: Guard = async () => {};

const AS_IT_IS: ChangeCodec<never> = { encode: (change) => change, decode: (json) => json as never };

export class Stream<Change> {
  readonly name: string;
  readonly #sequencer: Sequencer | undefined;
  readonly #codec: ChangeCodec<Change>;
  #next: number;
  #current: number;
  /** Reserved positions that are not complete, lowest first (a Map keeps insertion order). */
  readonly #pending = new Map<number, { done: boolean; changes: readonly Change[] }>();
  /** What this process has completed and is still to hear of. */
  readonly #own = new Map<number, readonly Change[]>();
  readonly #listeners: Listener<Change>[] = [];

  /**
   * @param start the highest position in the database, 0 when there is none
   * @param shared where other processes write to the stream too
   */
  constructor(
    name: string,
    start: number,
    shared: { readonly sequencer?: Sequencer | undefined; readonly codec?: ChangeCodec<Change> } = {},
  ) {
    this.name = name;
    this.#next = start;
    this.#current = start;
    this.#sequencer = shared.sequencer;
    this.#codec = shared.codec ?? AS_IT_IS;
  }

  /** Everything up to and including this position is committed and announced. */
  get current(): number {
    return this.#current;
  }

  /** @param gap called instead of `change` where changes may have been missed */
  subscribe(change: (position: number, change: Change) => void, gap?: (gap: StreamGap) => void): void {
    this.#listeners.push({ change, gap });
  }

  /**
   * Reserves a position, stores with it, and announces `changes` once it and all before it are stored. Resolves when
   * all processes have heard. When `store` throws, the position stays empty and readers pass over it.
   */
  async write<T>(changes: readonly Change[], store: (position: number) => Promise<T>): Promise<T> {
    const position = await this.reserve();
    let result: T;
    try {
      result = await store(position);
    } catch (error) {
      await this.complete(position, []);
      throw error;
    }
    await this.complete(position, changes);
    return result;
  }

  /** For writers that store in batches: every reserved position must be completed, also after a failure. */
  reserve(gapBefore = 0): number | Promise<number> {
    return this.#sequencer ? this.#sequencer.reserve(this.name, 1, gapBefore) : this.#reserveHere(gapBefore);
  }

  /**
   * For writers whose fact must not be stored at a position that is passed over, as nobody would ever hear of it: to be
   * taken at once when the position is there, and called in the transaction that stores.
   */
  guard(): Guard {
    return this.#sequencer?.guard() ?? UNGUARDED;
  }

  /**
   * `count` positions in a row, for writers that need several. All of them are to be completed, and soon: until then
   * nobody hears of anything that comes after them.
   *
   * @returns the first
   */
  reserveMany(count: number): number | Promise<number> {
    if (this.#sequencer) return this.#sequencer.reserve(this.name, count, 0);
    const first = this.#reserveHere(0);
    for (let i = 1; i < count; i++) this.#reserveHere(0);
    return first;
  }

  /** Announces changes that are stored nowhere; at once where there is no other process and nothing is under way. */
  tell(changes: readonly Change[]): void | Promise<void> {
    const position = this.reserve();
    return typeof position === 'number'
      ? this.complete(position, changes)
      : position.then((reserved) => this.complete(reserved, changes));
  }

  /** Resolves once every process has heard of the changes. Rejects when none ever will: this process was shut out. */
  complete(position: number, changes: readonly Change[]): void | Promise<void> {
    if (this.#sequencer) {
      if (changes.length > 0) this.#own.set(position, changes);
      return this.#sequencer
        .complete(this.name, position, changes.map(this.#codec.encode), this.#isUrgent(changes))
        .finally(() => this.#own.delete(position));
    }
    const entry = this.#pending.get(position);
    if (!entry) throw new Error(`stream ${this.name}: position ${position} was not reserved`);
    entry.done = true;
    entry.changes = changes;
    for (const [first, { done, changes: ready }] of this.#pending) {
      if (!done) break;
      this.#pending.delete(first);
      this.#current = first;
      for (const change of ready) for (const listener of this.#listeners) listener.change(first, change);
    }
  }

  /**
   * As `complete`, for what was committed with a `guard`: where the processes had to agree anew and nobody is told of it
   * any more, all find it in the database.
   */
  async conclude(position: number, changes: readonly Change[]): Promise<void> {
    try {
      await this.complete(position, changes);
    } catch (error) {
      if (!(error instanceof MatrixError)) throw error;
    }
  }

  /**
   * For the cluster: all processes are told now of a position. Not lower than any before.
   *
   * @param changes their JSON values; not asked for where this process has made them
   */
  announced(position: number, changes: () => readonly unknown[]): void {
    this.#current = Math.max(this.#current, position);
    for (const change of this.#own.get(position) ?? changes().map(this.#codec.decode))
      for (const listener of this.#listeners) listener.change(position, change);
  }

  /** For the cluster: the stream goes on at `to`, and what lies between may have been missed. */
  skipTo(to: number): void {
    const from = this.#current;
    this.#current = Math.max(from, to);
    for (const { gap } of this.#listeners) gap?.({ from, to: this.#current });
  }

  #isUrgent(changes: readonly Change[]): boolean {
    return changes.some((change) => this.#codec.isUrgent?.(change) === true);
  }

  #reserveHere(gapBefore: number): number {
    this.#next += 1 + gapBefore;
    this.#pending.set(this.#next, { done: false, changes: [] });
    return this.#next;
  }
}

export interface AccountDataChange {
  userId: string;
  /** `null` for global account data. */
  roomId: string | null;
  type: string;
}
export interface ReceiptChange {
  roomId: string;
  userId: string;
  eventId: string;
  /** `m.read`, `m.read.private`, … */
  type: string;
  threadId: string | null;
  ts: number;
  /** The event's place in the room's order, where it is known. */
  eventPos?: number | null;
}
export interface TypingChange {
  roomId: string;
  /** All users typing in the room now. */
  userIds: readonly string[];
  /** Who began, went on (told now and then, for other servers) or ceased to type. */
  changed: { readonly userId: string; readonly typing: boolean };
}
export interface ToDeviceChange {
  userId: string;
  deviceId: string;
}
export interface DeviceListChange {
  /** A user, of this server or of another, whose devices, keys or cross-signing signatures changed. */
  userId: string;
  /** Only these servers are to hear of it: they begin to share a room with the user, for others nothing is new. */
  servers?: readonly string[];
  /** Only this local user sees it: it is their signature on the other's key. */
  onlyFor?: string;
}
export interface PresenceState {
  /** `online`, `unavailable`, `offline`, or `busy` (MSC3026). */
  readonly presence: string;
  readonly statusMsg: string | null;
  /** 0 when the user was never seen. */
  readonly lastActiveTs: number;
  readonly currentlyActive: boolean;
}
export interface PresenceChange {
  userId: string;
  state: PresenceState;
}

/** The streams besides that of events. */
export interface Streams {
  readonly accountData: Stream<AccountDataChange>;
  readonly receipts: Stream<ReceiptChange>;
  /** Lives in memory only; positions start at the clock, so that they grow across restarts. */
  readonly typing: Stream<TypingChange>;
  readonly toDevice: Stream<ToDeviceChange>;
  readonly deviceLists: Stream<DeviceListChange>;
  readonly presence: Stream<PresenceChange>;
}
