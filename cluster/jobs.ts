import type { Cluster, Json } from './cluster.ts';

export interface JobOptions {
  /** Two of the same id are one, until it is done. */
  readonly id?: string;
  readonly delayMs?: number;
  /** Times that it is tried, with growing waits in between; once when left out. */
  readonly attempts?: number;
}

export type JobHandler<Data extends Json> = (data: Data) => Promise<Json | undefined>;

/**
 * Work that any process may do, which is heavy or may have to be tried again. Nothing is known of it for certain but
 * what its handlers store: a job may be lost, with Redis or with a process, and it may be done twice. What has to
 * happen is found in the database (`sweep`). The data of a job hold no secrets.
 */
export interface Jobs {
  /** To be called for each kind of job by every process, before `start`. */
  handle<Data extends Json>(
    name: string,
    handler: JobHandler<Data>,
    options?: { readonly concurrency?: number },
  ): void;
  /** Begins to work, where this process does jobs. */
  start(): Promise<void>;
  /** Somebody will do it. */
  add(name: string, data: Json, options?: JobOptions): Promise<void>;
  /**
   * Resolves once somebody has done it: this process, when nobody else does. Rejects with what went wrong here.
   *
   * @param options.id what others are doing under this id already is waited for
   */
  run(name: string, data: Json, options?: Pick<JobOptions, 'id'>): Promise<void>;
  /** Gives what is under way some time to be done. */
  close(): Promise<void>;
}

export interface Sweep {
  /** The name of the jobs. */
  readonly name: string;
  readonly intervalMs: number;
  readonly attempts?: number;
  /** What the database says is still to be done. */
  find(): Promise<ReadonlyArray<{ readonly id: string; readonly data: Json }>>;
}

/**
 * Adds the jobs that the database knows of: at the start, now and then, and when another process did that before. One
 * process does it for all.
 *
 * @returns ends it
 */
export function sweep(
  {
    cluster,
    jobs,
    log,
  }: { cluster: Cluster; jobs: Jobs; log: { warn(details: object, message: string): void } },
  { name, intervalMs, attempts = 1, find }: Sweep,
): () => void {
  let isRunning = false;
  let isEnded = false;
  const run = async () => {
    if (isRunning || isEnded || !cluster.owns('task', `jobs/${name}`)) return;
    isRunning = true;
    try {
      for (const { id, data } of await find()) await jobs.add(name, data, { id, attempts });
    } catch (err) {
      log.warn({ err, job: name }, 'it could not be looked for jobs');
    }
    isRunning = false;
  };
  const timer = setInterval(() => void run(), intervalMs).unref();
  cluster.onHandover({ take: () => void run() });
  if (!cluster.shared) void run();
  return () => {
    isEnded = true;
    clearInterval(timer);
  };
}
