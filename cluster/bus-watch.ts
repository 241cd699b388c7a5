/** Of so many parts a limit of silence consists. */
const TICKS = 8;
/** A sign of life is given after so many of them, where nothing else was said meanwhile. */
const BEAT = 2;

/** What is watched. Both counts are put to 0 by their owner, when something is heard or said. */
export interface Watched {
  ticksUnheard: number;
  ticksUnsaid: number;
}

/**
 * Heartbeats, and who has ceased to give them. Time is counted in ticks that this process has lived through: however
 * long it was stopped, or its event loop busy, the others are held to have been silent for one tick only.
 */
export class Watch<W extends Watched> {
  readonly #peers: () => Iterable<W>;
  readonly #beat: (peer: W) => void;
  readonly #silent: (peer: W) => void;
  readonly #timer: NodeJS.Timeout;

  /**
   * @param beat is to give a sign of life
   * @param silent is called when a limit has passed, and again with each tick after it
   */
  constructor(limit: number, peers: () => Iterable<W>, beat: (peer: W) => void, silent: (peer: W) => void) {
    this.#peers = peers;
    this.#beat = beat;
    this.#silent = silent;
    this.#timer = setInterval(() => this.#tick(), limit / TICKS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #tick(): void {
    for (const peer of [...this.#peers()]) {
      if (++peer.ticksUnsaid >= BEAT) this.#beat(peer);
      if (++peer.ticksUnheard > TICKS) this.#silent(peer);
    }
  }
}
