/** Lets a number of tasks run at a time in all, and fewer of one key, so that one slow gateway holds nobody else up. */
export class Lanes {
  readonly #keys = new Map<string, Lane>();
  readonly #all: Lane;
  readonly #keyWidth: number;

  constructor(width: number, keyWidth: number) {
    this.#all = new Lane(width);
    this.#keyWidth = keyWidth;
  }

  async run<T>(key: string, task: () => Promise<T>): Promise<T> {
    let lane = this.#keys.get(key);
    if (!lane) {
      lane = new Lane(this.#keyWidth);
      this.#keys.set(key, lane);
    }
    try {
      return await lane.run(() => this.#all.run(task));
    } finally {
      if (lane.isIdle) this.#keys.delete(key);
    }
  }
}

class Lane {
  readonly #width: number;
  #running = 0;
  readonly #waiting: Array<() => void> = [];

  constructor(width: number) {
    this.#width = width;
  }

  get isIdle(): boolean {
    return this.#running === 0;
  }

  async run<T>(task: () => Promise<T>): Promise<T> {
    if (this.#running < this.#width) this.#running++;
    else await new Promise<void>((go) => this.#waiting.push(go));
    try {
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}
