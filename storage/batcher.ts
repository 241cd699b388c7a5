interface Waiting<T> {
  readonly item: T;
  readonly done: PromiseWithResolvers<void>;
}

/**
 * Stores items in batches without a timer: at once when nothing is being stored, and what arrives meanwhile goes
 * together in the next batch. Batches are stored one after the other, items in the order in which they came.
 */
export class Batcher<T> {
  readonly #store: (items: readonly T[]) => Promise<void>;
  readonly #limit: number;
  #waiting: Waiting<T>[] = [];
  #running: Promise<void> | undefined;

  /** @param limit items in one batch at the most */
  constructor(store: (items: readonly T[]) => Promise<void>, limit = 500) {
    this.#store = store;
    this.#limit = limit;
  }

  /** Resolves when the item is stored; rejects when its batch is not. */
  add(item: T): Promise<void> {
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ item, done });
    this.#running ??= this.#run();
    return done.promise;
  }

  /** Waits until everything is stored or has failed. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running;
  }

  async #run(): Promise<void> {
    // Whoever adds in this turn of the event loop comes along.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, this.#limit);
      try {
        await this.#store(batch.map(({ item }) => item));
        for (const { done } of batch) done.resolve();
      } catch (error) {
        for (const { done } of batch) done.reject(error);
      }
    }
    this.#running = undefined;
  }
}
