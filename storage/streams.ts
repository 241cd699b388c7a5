/**
 * Streams: numbered facts that readers follow (see docs/architecture.md, "Streams and positions").
 *
 * A writer reserves a position, stores its fact under it, and completes it. `current` is the highest position
 * below which everything is complete: a reader that has seen up to `current` has missed nothing and will
 * never be shown a lower position later. Listeners hear of changes in the order of their positions.
 */
export class Stream<Change> {
  readonly name: string;
  #next: number;
  #current: number;
  /** Reserved positions that are not complete, lowest first (a Map keeps insertion order). */
  readonly #pending = new Map<number, { done: boolean; changes: readonly Change[] }>();
  readonly #listeners: Array<(position: number, change: Change) => void> = [];

  /** @param start the highest position in the database, 0 when there is none */
  constructor(name: string, start: number) {
    this.name = name;
    this.#next = start;
    this.#current = start;
  }

  /** Everything up to and including this position is committed and announced. */
  get current(): number {
    return this.#current;
  }

  subscribe(listener: (position: number, change: Change) => void): void {
    this.#listeners.push(listener);
  }

  /**
   * Reserves a position, stores with it, and announces `changes` once it and all before it are stored.
   * When `store` throws, the position stays empty and readers pass over it.
   */
  async write<T>(changes: readonly Change[], store: (position: number) => Promise<T>): Promise<T> {
    const position = this.reserve();
    try {
      const result = await store(position);
      this.complete(position, changes);
      return result;
    } catch (error) {
      this.complete(position, []);
      throw error;
    }
  }

  /** For writers that store in batches: every reserved position must be completed, also after a failure. */
  reserve(gapBefore = 0): number {
    this.#next += 1 + gapBefore;
    this.#pending.set(this.#next, { done: false, changes: [] });
    return this.#next;
  }

  complete(position: number, changes: readonly Change[]): void {
    const entry = this.#pending.get(position);
    if (!entry) throw new Error(`stream ${this.name}: position ${position} was not reserved`);
    entry.done = true;
    entry.changes = changes;
    for (const [first, { done, changes: ready }] of this.#pending) {
      if (!done) break;
      this.#pending.delete(first);
      this.#current = first;
      for (const change of ready) for (const listener of this.#listeners) listener(first, change);
    }
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
