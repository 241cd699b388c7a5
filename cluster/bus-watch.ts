/** Of so many parts a limit of silence consists. */
const TICKS = 8;
/** A sign of life is given after so many of them, where nothing else was said meanwhile. */
const BEAT = 2;

/** What is watched. Both counts are put to 0 by their owner, when something is heard or said. */
export interface Watched {
  ticksUnheard: number;
  ticksUnsaid: number;
}

export interface WatchParts<W extends Watched> {
  peers(): Iterable<W>;
  /** Is to give a sign of life. */
  beat(peer: W): void;
  /** A limit has passed. Called again with each tick after it. */
  silent(peer: W): void;
  /** Before it is told who is silent. */
  tick?(): void;
  /** How much this tick counts against a peer; 1 where it is not given. */
  weight?(peer: W): number;
}

/**
 * Heartbeats, and who has ceased to give them. Time is counted in ticks that this process has lived through: however
 * long it was stopped, or its event loop busy, the others are held to have been silent for one tick only.
 */
export class Watch<W extends Watched> {
  readonly #parts: WatchParts<W>;
  readonly #timer: NodeJS.Timeout;
  readonly #interval: number;
  #ticked = performance.now();
  #stopped = false;

  constructor(limit: number, parts: WatchParts<W>) {
    this.#parts = parts;
    this.#interval = limit / TICKS;
    this.#timer = setInterval(() => this.#tick(), this.#interval);
    this.#timer.unref();
  }

  stop(): void {
    this.#stopped = true;
    clearInterval(this.#timer);
  }

  #tick(): void {
    const { peers, beat } = this.#parts;
    const now = performance.now();
    // To the others it is the time that counts, not whether it was lived through.
    const passed = Math.max(1, Math.round((now - this.#ticked) / this.#interval));
    this.#ticked = now;
    for (const peer of peers()) {
      peer.ticksUnsaid += passed;
      if (peer.ticksUnsaid >= BEAT) beat(peer);
    }
    // In between, what has come meanwhile is read.
    setImmediate(() => this.#judge());
  }

  #judge(): void {
    if (this.#stopped) return;
    const { peers, silent, tick, weight } = this.#parts;
    tick?.();
    for (const peer of [...peers()]) {
      peer.ticksUnheard += weight ? weight(peer) : 1;
      if (peer.ticksUnheard > TICKS) silent(peer);
    }
  }
}
