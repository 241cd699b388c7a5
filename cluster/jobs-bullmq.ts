import { type ConnectionOptions, type Job, Queue, QueueEvents, Worker } from 'bullmq';
import { Redis, Cluster as RedisCluster, type RedisOptions } from 'ioredis';
import type { Json } from './cluster.ts';
import type { JobHandler, JobOptions, Jobs } from './jobs.ts';
import { FIRST_RETRY_MS, LocalJobs } from './jobs-local.ts';
import type { RedisPlace } from './redis-place.ts';

export interface BullJobsOptions {
  readonly redis: RedisPlace;
  /** So that several installations can share a Redis. */
  readonly installation: string;
  /** Whether this process does jobs, or only has them done. */
  readonly works: boolean;
  /** Who has not been served by then does it itself; a minute when left out. */
  readonly patienceMs?: number;
  readonly log: { warn(details: object, message: string): void };
}

interface Kind {
  readonly handler: JobHandler<never>;
  readonly concurrency: number;
  queue?: Queue;
  events?: QueueEvents;
  worker?: Worker;
}

/** Who waits for a job looks that often whether there is still something to wait for. */
const LOOK_MS = 1_000;
const PATIENCE_MS = 60_000;
/** Redis that does not take a job by then is not there. */
const ADD_LIMIT_MS = 2_000;
/** So long what came of a job can be asked for, in seconds. */
const KEPT_S = 60;
const CLOSE_WAIT_MS = 3_000;
const DEFAULT_CONCURRENCY = 4;

/**
 * Jobs that any process with the role `jobs` does, by way of BullMQ. As long as Redis is not there, or loses a job,
 * each process does its own.
 */
export class BullJobs implements Jobs {
  readonly #options: BullJobsOptions;
  readonly #kinds = new Map<string, Kind>();
  /** For when nobody else does it. */
  readonly #local: LocalJobs;
  readonly #connections: Array<Redis | RedisCluster> = [];
  #isClosed = false;

  constructor(options: BullJobsOptions) {
    this.#options = options;
    this.#local = new LocalJobs(options.log);
  }

  handle<Data extends Json>(
    name: string,
    handler: JobHandler<Data>,
    options: { readonly concurrency?: number } = {},
  ): void {
    this.#kinds.set(name, { handler, concurrency: options.concurrency ?? DEFAULT_CONCURRENCY });
    this.#local.handle(name, handler, options);
  }

  async start(): Promise<void> {
    if (!this.#options.works) return;
    for (const [name, kind] of this.#kinds) {
      kind.worker = new Worker(name, async ({ data }) => (await kind.handler(data as never)) ?? null, {
        ...this.#base(null),
        concurrency: kind.concurrency,
      });
      kind.worker.on('error', (err) => this.#complain(err));
    }
  }

  async add(name: string, data: Json, options: JobOptions = {}): Promise<void> {
    const { id, delayMs, attempts = 1 } = options;
    try {
      const added = this.#queue(name).add(name, data, {
        ...(id !== undefined && { jobId: jobId(id) }),
        ...(delayMs !== undefined && { delay: delayMs }),
        attempts,
        backoff: { type: 'exponential', delay: FIRST_RETRY_MS },
        removeOnComplete: true,
        removeOnFail: true,
      });
      await within(ADD_LIMIT_MS, added);
    } catch (err) {
      this.#complain(err);
      await this.#local.add(name, data, options);
    }
  }

  async run(name: string, data: Json, { id }: Pick<JobOptions, 'id'> = {}): Promise<void> {
    if (await this.#doneElsewhere(name, data, id)) return;
    await this.#local.run(name, data, id === undefined ? {} : { id });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    const closing = [...this.#kinds.values()].map(async ({ worker, queue, events }) => {
      await worker?.close();
      await events?.close();
      await queue?.close();
    });
    const late = new Promise((wake) => setTimeout(wake, CLOSE_WAIT_MS).unref());
    await Promise.race([Promise.allSettled([...closing, this.#local.close()]), late]);
    for (const connection of this.#connections) connection.disconnect();
  }

  async #doneElsewhere(name: string, data: Json, id: string | undefined): Promise<boolean> {
    try {
      const events = this.#events(name);
      await within(ADD_LIMIT_MS, events.waitUntilReady());
      const added = this.#queue(name).add(name, data, {
        ...(id !== undefined && { jobId: jobId(id) }),
        removeOnComplete: { age: KEPT_S },
        removeOnFail: { age: KEPT_S },
      });
      const job = await within(ADD_LIMIT_MS, added);
      return await this.#finished(job, events);
    } catch (err) {
      this.#complain(err);
      return false;
    }
  }

  /** @returns `false` when it failed, was lost, or takes too long */
  async #finished(job: Job, events: QueueEvents): Promise<boolean> {
    const looking = new AbortController();
    const isThere = async () => {
      const state = await within(ADD_LIMIT_MS, job.getState()).catch(() => 'unknown');
      return state !== 'unknown' && state !== 'failed';
    };
    const lost = (async () => {
      while (!looking.signal.aborted) {
        await new Promise((wake) => setTimeout(wake, LOOK_MS).unref());
        if (looking.signal.aborted || !(await isThere())) return false;
      }
      return false;
    })();
    const done = job.waitUntilFinished(events, this.#options.patienceMs ?? PATIENCE_MS).then(
      () => true,
      () => false,
    );
    try {
      return await Promise.race([done, lost]);
    } finally {
      looking.abort();
    }
  }

  #queue(name: string): Queue {
    const kind = this.#kind(name);
    if (!kind.queue) {
      kind.queue = new Queue(name, this.#base(1));
      kind.queue.on('error', (err) => this.#complain(err));
    }
    return kind.queue;
  }

  #events(name: string): QueueEvents {
    const kind = this.#kind(name);
    if (!kind.events) {
      kind.events = new QueueEvents(name, this.#base(null));
      kind.events.on('error', (err) => this.#complain(err));
    }
    return kind.events;
  }

  #kind(name: string): Kind {
    const kind = this.#kinds.get(name);
    if (!kind) throw new Error(`nobody does jobs of the kind ${name}`);
    return kind;
  }

  #base(retries: number | null) {
    const connection = open(this.#options.redis, retries);
    connection.on('error', () => {});
    this.#connections.push(connection);
    // In braces, as all keys of a queue have to lie on one node of a Cluster.
    const prefix = `{trellis:${this.#options.installation}:jobs}`;
    return { connection: connection as unknown as ConnectionOptions, prefix, skipVersionCheck: true };
  }

  #complain(err: unknown): void {
    if (!this.#isClosed) this.#options.log.warn({ err }, 'jobs: Redis does not do what it should');
  }
}

/** BullMQ takes no colon in an id. */
function jobId(id: string): string {
  return `id-${id.replaceAll(':', '_')}`;
}

/** @param retries of one command, while there is no connection: `null` for ever */
function open(place: RedisPlace, retries: number | null): Redis | RedisCluster {
  const common: RedisOptions = {
    maxRetriesPerRequest: retries,
    connectTimeout: 2_000,
    retryStrategy: (times) => Math.min(50 * 2 ** Math.min(times, 5), 1_000),
  };
  if ('url' in place) return new Redis(place.url, place.tls ? { ...common, tls: place.tls } : common);
  const { username, password, tls } = place;
  const login: RedisOptions = {
    ...common,
    ...(username !== undefined && { username }),
    ...(password !== undefined && { password }),
    ...(tls && { tls }),
  };
  if ('nodes' in place) return new RedisCluster([...place.nodes], { redisOptions: login });
  return new Redis({
    ...login,
    sentinels: [...place.sentinels],
    name: place.name,
    ...(place.sentinelUsername !== undefined && { sentinelUsername: place.sentinelUsername }),
    ...(place.sentinelPassword !== undefined && { sentinelPassword: place.sentinelPassword }),
    ...(tls ? { sentinelTLS: tls, enableTLSForSentinelMode: true } : {}),
  });
}

function within<T>(limitMs: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error('Redis does not answer')), limitMs).unref();
  });
  promise.catch(() => {});
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
