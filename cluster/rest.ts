import type { Call } from './messages.ts';

export interface RestParts {
  /** Whether this process may be told things later than others: there is a coordinator, which is another process. */
  mayRest(): boolean;
  /** Whether what another process says may overtake what the coordinator has said before. */
  isOvertaking(): boolean;
  tellRest(): void;
  /** Resolves when this process has been told all that it was not told while it rested. */
  tellWake(): Promise<unknown>;
  handle(from: string, call: Call): void;
}

/**
 * Whether a process knows all that others have been answered about. One that has nothing to do rests: the coordinator
 * tells it things later, many together. Whatever is begun meanwhile waits until it has heard of all.
 */
export class Rest {
  readonly #parts: RestParts;
  /** Things may have been told already that this process hears of later. */
  #resting = false;
  /** What is to be begun once it has heard of all. */
  #waking: Array<() => void> | undefined;
  #wasActive = true;
  /** What others asked and answered who may know more than this process has read. */
  #later: Array<readonly [from: string, call: Call]> = [];

  constructor(parts: RestParts) {
    this.#parts = parts;
  }

  /** Begins something once this process knows what others knew by now. */
  abreast(then: () => void): void {
    this.#wasActive = true;
    if (this.#resting) this.#wake(then);
    else if (this.#parts.isOvertaking()) setImmediate(then);
    else then();
  }

  /** Rests, unless there was something to do since this was called last. */
  rest(): void {
    const wasActive = this.#wasActive;
    this.#wasActive = false;
    if (wasActive || this.#resting || !this.#parts.mayRest()) return;
    this.#resting = true;
    this.#parts.tellRest();
  }

  /** Whoever does something is told of it at once. */
  stir(): void {
    if (this.#resting && !this.#waking) this.#wake();
  }

  /** A new coordinator tells all at once, until it hears otherwise. */
  forget(): void {
    if (!this.#waking) this.#resting = false;
  }

  /**
   * Hands on what another process asks or answers, in the order in which it came.
   *
   * @param isInOrder the other knows no more than this process has read
   */
  receive(from: string, call: Call, isInOrder: boolean): void {
    this.#wasActive = true;
    if (isInOrder && !this.#resting && this.#later.length === 0) {
      this.#parts.handle(from, call);
      return;
    }
    this.#later.push([from, call]);
    if (this.#later.length === 1) this.abreast(() => this.flush());
  }

  /** Hands on at once what waits. */
  flush(): void {
    for (const [from, call] of this.#later.splice(0)) this.#parts.handle(from, call);
  }

  #wake(then?: () => void): void {
    this.#wasActive = true;
    if (this.#waking) {
      if (then) this.#waking.push(then);
      return;
    }
    this.#waking = then ? [then] : [];
    const awake = () => {
      this.#resting = false;
      const waking = this.#waking!;
      this.#waking = undefined;
      for (const begin of waking) begin();
    };
    // Where it fails this process was shut out, and whatever it begins fails too.
    this.#parts.tellWake().then(awake, awake);
  }
}
