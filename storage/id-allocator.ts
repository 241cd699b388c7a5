import type { Queryable } from './database.ts';

/** One `nextval` of the sequence `ids` hands out this many ids; the same number stands in migration 0001. */
const BLOCK = 65536;

/**
 * Numeric ids, unique over all processes of an installation, without a round trip for each: the process takes
 * blocks from a sequence and asks for the next before the last is used up.
 */
export class IdAllocator {
  readonly #db: Queryable;
  #next = 0;
  #end = 0;
  #spare: number[] = [];
  #refilling: Promise<void> | undefined;

  private constructor(db: Queryable) {
    this.#db = db;
  }

  static async create(db: Queryable): Promise<IdAllocator> {
    const ids = new IdAllocator(db);
    await ids.ensure(BLOCK);
    return ids;
  }

  next(): number {
    if (this.#next === this.#end) {
      const block = this.#spare.shift();
      if (block === undefined)
        throw new Error('out of ids: the database did not hand out a new block in time');
      this.#next = block;
      this.#end = block + BLOCK;
    }
    // A failed refill is tried again by the next call; only running dry is an error.
    if (this.#spare.length === 0 && this.#end - this.#next < BLOCK / 2) this.#refill().catch(() => {});
    return this.#next++;
  }

  /** Waits until `count` ids can be taken without waiting: before large batches. */
  async ensure(count: number): Promise<void> {
    while (this.#end - this.#next + this.#spare.length * BLOCK < count) await this.#refill();
  }

  #refill(): Promise<void> {
    this.#refilling ??= this.#db
      .query<{ start: number }>(`SELECT nextval('ids') AS start`)
      .then((rows) => {
        this.#spare.push(rows[0]!.start);
      })
      .finally(() => {
        this.#refilling = undefined;
      });
    return this.#refilling;
  }
}
