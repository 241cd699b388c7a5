import { MatrixError } from '@trellis/protocol/errors.ts';

/** Lets few pieces of work run at a time and not too many wait. */
export class Turns {
  readonly #atATime: number;
  readonly #maxWaiting: number;
  readonly #refusal: string;
  readonly #waiting: Array<() => void> = [];
  #running = 0;

  /** @param refusal what those are told who cannot even wait */
  constructor(atATime: number, maxWaiting: number, refusal: string) {
    this.#atATime = atATime;
    this.#maxWaiting = maxWaiting;
    this.#refusal = refusal;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#atATime) {
      if (this.#waiting.length >= this.#maxWaiting)
        throw new MatrixError(429, 'M_LIMIT_EXCEEDED', this.#refusal, { retry_after_ms: 2_000 });
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else {
      this.#running++;
    }
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}
