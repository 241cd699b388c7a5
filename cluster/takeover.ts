import type { DutyMarks, Marks } from './duty-marks.ts';

export interface TakeoverDeps<Rows> {
  readonly marks: DutyMarks;
  /** Everything up to here was given to those keys that this process had; what comes after is given to all it has. */
  readonly positions: () => Marks;
  /** Reads what those before have written down about their keys. */
  readonly read: () => Promise<Rows>;
  /** From here on keys that are new to this process count as its own; what was read of them is there. */
  readonly settle: (rows: Rows, upTo: Marks) => void;
  /**
   * Finds in the database what happened in (from, upTo].
   *
   * @param missed nobody was told of it: it is news for all keys, not only for those gained
   */
  readonly recover: (from: Marks, upTo: Marks, missed: boolean) => Promise<void>;
  /** Nothing is to be recovered any more. */
  readonly onFree: () => void;
  readonly log: { warn(details: object, message: string): void };
}

const RETRY_MS = 1_000;
const FAILED = 'what others had to do could not be taken up: trying again';

/** Takes up what other processes had to do: after they gave it up, or died, or died before they told of something. */
export class Takeover<Rows> {
  readonly #deps: TakeoverDeps<Rows>;
  readonly #recoveries = new Set<Marks>();
  #recovered: Promise<void> = Promise.resolve();
  /** From where on is to be looked for what was gained, while it is not known what that is. */
  #pending: Marks | undefined;
  /** Between `release` and `take`. */
  #isChanging = false;
  #changes = 0;
  #isRunning = false;
  #ran: Promise<void> = Promise.resolve();
  #isClosed = false;

  constructor(deps: TakeoverDeps<Rows>) {
    this.#deps = deps;
  }

  /** What was read is there; keys may be taken for one's own as soon as something happens for them. */
  get isSettled(): boolean {
    return this.#pending === undefined;
  }

  /** Something older may still be found. */
  get isRecovering(): boolean {
    return this.#recoveries.size > 0;
  }

  /** Lowers positions to where everything is known. */
  floor(marks: Marks): Marks {
    let lowest = this.#pending ? least(marks, this.#pending) : marks;
    for (const from of this.#recoveries) lowest = least(lowest, from);
    return lowest;
  }

  take(): void {
    this.#isChanging = false;
    this.#changes++;
    const now = this.#deps.positions();
    this.#pending = this.#pending ? least(this.#pending, now) : now;
    if (!this.#isRunning) this.#ran = this.#run();
  }

  release(): void {
    this.#isChanging = true;
    this.#changes++;
  }

  /** What happened in (from, upTo] was not announced, perhaps. */
  gap(from: Marks, upTo: Marks): void {
    this.#recoveries.add(from);
    this.#recover(from, upTo, true);
  }

  /** Resolves when all that is known to have to be recovered is. */
  async free(): Promise<void> {
    await this.#ran;
    await this.#recovered;
  }

  close(): void {
    this.#isClosed = true;
  }

  async #run(): Promise<void> {
    this.#isRunning = true;
    const { marks, positions, read, settle } = this.#deps;
    while (!this.#isChanging && !this.#isClosed) {
      const changes = this.#changes;
      const rows = await this.#try(async () => {
        await marks.adopt(
          () => this.floor(positions()),
          (from) => {
            if (from) this.#pending = least(this.#pending ?? from, from);
          },
          (err) => this.#deps.log.warn({ err }, FAILED),
        );
        return read();
      });
      if (changes !== this.#changes || rows === undefined) continue;
      const from = this.#pending!;
      const upTo = positions();
      this.#pending = undefined;
      this.#recoveries.add(from);
      settle(rows, upTo);
      this.#recover(from, upTo, false);
      break;
    }
    this.#isRunning = false;
  }

  #recover(from: Marks, upTo: Marks, missed: boolean): void {
    this.#recovered = this.#recovered.then(async () => {
      if (from.events < upTo.events || from.lists < upTo.lists)
        await this.#try(() => this.#deps.recover(from, upTo, missed));
      if (this.#isClosed) return;
      this.#recoveries.delete(from);
      if (this.#recoveries.size === 0) this.#deps.onFree();
    });
  }

  /** Until it succeeds: nothing may be passed over. */
  async #try<T>(task: () => Promise<T>): Promise<T | undefined> {
    while (!this.#isClosed) {
      try {
        return await task();
      } catch (err) {
        if (this.#isClosed) return undefined;
        this.#deps.log.warn({ err }, FAILED);
        await new Promise((wake) => setTimeout(wake, RETRY_MS).unref());
      }
    }
    return undefined;
  }
}

function least(a: Marks, b: Marks): Marks {
  return { events: Math.min(a.events, b.events), lists: Math.min(a.lists, b.lists) };
}
