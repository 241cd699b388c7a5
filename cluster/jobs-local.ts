import type { Json } from './cluster.ts';
import type { JobHandler, JobOptions, Jobs } from './jobs.ts';

interface Kind {
  readonly handler: JobHandler<never>;
  readonly concurrency: number;
  running: number;
  readonly waiting: Array<() => void>;
}

/** Milliseconds before the second try: doubled each time. */
export const FIRST_RETRY_MS = 1_000;
const DEFAULT_CONCURRENCY = 4;
const CLOSE_WAIT_MS = 3_000;

/** Jobs that the process does itself. */
export class LocalJobs implements Jobs {
  readonly #kinds = new Map<string, Kind>();
  readonly #known = new Map<string, Promise<void>>();
  readonly #running = new Set<Promise<void>>();
  readonly #log: { warn(details: object, message: string): void };
  #isClosed = false;

  constructor(log: { warn(details: object, message: string): void }) {
    this.#log = log;
  }

  handle<Data extends Json>(
    name: string,
    handler: JobHandler<Data>,
    { concurrency = DEFAULT_CONCURRENCY }: { readonly concurrency?: number } = {},
  ): void {
    this.#kinds.set(name, { handler, concurrency, running: 0, waiting: [] });
  }

  async start(): Promise<void> {}

  async add(name: string, data: Json, options: JobOptions = {}): Promise<void> {
    this.#once(name, options.id, () => this.#tries(name, data, options)).catch((err) => {
      if (!this.#isClosed) this.#log.warn({ err, job: name }, 'a job failed');
    });
  }

  run(name: string, data: Json, { id }: Pick<JobOptions, 'id'> = {}): Promise<void> {
    return this.#once(name, id, () => this.#do(name, data));
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    const late = new Promise((wake) => setTimeout(wake, CLOSE_WAIT_MS).unref());
    await Promise.race([Promise.allSettled(this.#running), late]);
  }

  #once(name: string, id: string | undefined, work: () => Promise<void>): Promise<void> {
    const key = `${name} ${id}`;
    const known = id === undefined ? undefined : this.#known.get(key);
    if (known) return known;
    const done = work().finally(() => this.#known.delete(key));
    if (id !== undefined) this.#known.set(key, done);
    return done;
  }

  async #tries(name: string, data: Json, { delayMs = 0, attempts = 1 }: JobOptions): Promise<void> {
    if (delayMs > 0) await sleep(delayMs);
    for (let tried = 1; !this.#isClosed; tried++)
      try {
        return await this.#do(name, data);
      } catch (error) {
        if (tried >= attempts) throw error;
        await sleep(FIRST_RETRY_MS * 2 ** (tried - 1));
      }
  }

  async #do(name: string, data: Json): Promise<void> {
    const kind = this.#kinds.get(name);
    if (!kind) throw new Error(`nobody does jobs of the kind ${name}`);
    if (kind.running < kind.concurrency) kind.running++;
    else await new Promise<void>((go) => kind.waiting.push(go));
    const run = (async () => {
      await kind.handler(data as never);
    })();
    this.#running.add(run);
    try {
      await run;
    } finally {
      this.#running.delete(run);
      const next = kind.waiting.shift();
      if (next) next();
      else kind.running--;
    }
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((wake) => setTimeout(wake, ms).unref());
}
