/** How far a user has read, as one receipt says it. */
export interface Receipt {
  readonly userId: string;
  /** `m.read` or `m.read.private`. */
  readonly type: string;
  /** `main`, the root of a thread, or `null` for unthreaded ones. */
  readonly threadId: string | null;
  readonly eventId: string;
  /** The event's place in the room's order; `null` while it is not known here. */
  readonly eventPos: number | null;
  readonly ts: number;
  /** In the stream of receipts. */
  readonly pos: number;
}

export const PRIVATE = 'm.read.private';

/** Receipts that a user may have in one room, nearly all of them in threads. */
const MAX_PER_USER = 1000;
/** Changes remembered in their order, so that readers need not go through the receipts of all members. */
const MAX_LOG = 500;

type Content = Record<string, Record<string, Record<string, { ts: number; thread_id?: string }>>>;

/** All receipts of one room, in memory, and which of them are new. */
export class RoomReceipts {
  readonly #users = new Map<string, Map<string, Receipt>>();
  #log: Receipt[] = [];
  /** The log has everything above this position. */
  #logFrom: number;
  #size = 0;
  #shared: { key: string; content: Content } | undefined;

  /** @param now position in the stream of receipts up to which `receipts` are complete */
  constructor(receipts: Iterable<Receipt>, now: number) {
    this.#logFrom = now;
    for (const receipt of receipts) this.#put(receipt);
  }

  /** Number of receipts. */
  get size(): number {
    return this.#size;
  }

  get(userId: string, type: string, threadId: string | null): Receipt | undefined {
    return this.#users.get(userId)?.get(keyOf(type, threadId));
  }

  /** @returns a receipt that had to make room, as a user can only have so many */
  add(receipt: Receipt): Receipt | undefined {
    this.#put(receipt);
    this.#shared = undefined;
    this.#log.push(receipt);
    if (this.#log.length > MAX_LOG)
      for (const old of this.#log.splice(0, MAX_LOG / 2)) this.#logFrom = old.pos;
    const own = this.#users.get(receipt.userId)!;
    return own.size > MAX_PER_USER ? this.#dropOldest(own) : undefined;
  }

  /**
   * The content of an `m.receipt` event for a user: what is new in (from, to], or everything. Readers who miss the
   * same get the same object. `undefined` when there is nothing.
   */
  contentFor(userId: string, from: number | undefined, to: number): object | undefined {
    const news = from === undefined ? this.#all() : this.#after(from, to);
    if (news.length === 0) return undefined;
    const open = news.filter(({ type }) => type !== PRIVATE);
    if (open.length < news.length) {
      const own = news.filter((receipt) => receipt.type === PRIVATE && receipt.userId === userId);
      if (own.length > 0) return contentOf([...open, ...own]);
      if (open.length === 0) return undefined;
    }
    const key = `${from === undefined} ${open[0]!.pos} ${open.at(-1)!.pos} ${open.length}`;
    if (this.#shared?.key !== key) this.#shared = { key, content: contentOf(open) };
    return this.#shared.content;
  }

  #all(): Receipt[] {
    return [...this.#users.values()].flatMap((own) => [...own.values()]);
  }

  #after(from: number, to: number): Receipt[] {
    if (from < this.#logFrom) return this.#all().filter(({ pos }) => pos > from && pos <= to);
    let start = this.#log.length;
    while (start > 0 && this.#log[start - 1]!.pos > from) start--;
    return this.#log
      .slice(start)
      .filter(
        (receipt) =>
          receipt.pos <= to && this.get(receipt.userId, receipt.type, receipt.threadId) === receipt,
      );
  }

  #put(receipt: Receipt): void {
    let own = this.#users.get(receipt.userId);
    if (!own) {
      own = new Map();
      this.#users.set(receipt.userId, own);
    }
    const key = keyOf(receipt.type, receipt.threadId);
    if (!own.has(key)) this.#size++;
    own.set(key, receipt);
  }

  #dropOldest(own: Map<string, Receipt>): Receipt | undefined {
    let oldest: Receipt | undefined;
    for (const receipt of own.values())
      if (receipt.threadId !== null && (!oldest || receipt.pos < oldest.pos)) oldest = receipt;
    if (oldest && own.delete(keyOf(oldest.type, oldest.threadId))) this.#size--;
    return oldest;
  }
}

function keyOf(type: string, threadId: string | null): string {
  return `${type} ${threadId ?? ''}`;
}

function contentOf(receipts: readonly Receipt[]): Content {
  const content: Content = {};
  for (const { eventId, type, userId, ts, threadId } of receipts) {
    const types = content[eventId] ?? {};
    const users = types[type] ?? {};
    content[eventId] = types;
    types[type] = users;
    const other = users[userId];
    // There is room for one receipt of a user on an event: the unthreaded one says more (MSC4102).
    if (other && other.thread_id === undefined) continue;
    users[userId] = threadId === null ? { ts } : { ts, thread_id: threadId };
  }
  return content;
}
