import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import type { FastifyBaseLogger } from 'fastify';
import type { Config } from './config/schema.ts';
import { Doors } from './doors.ts';
import { lockInstance } from './instance-lock.ts';
import { type OpenDatabase, openDatabase } from './open-database.ts';
import { Placement } from './placement.ts';
import type { RunningServer } from './running-server.ts';
import { loadSigningKey } from './signing-key-file.ts';
import { supervisorFile, writeSupervisorState } from './supervisor-file.ts';
import { type GivenConnection, WorkerProcess } from './worker-process.ts';

/** A worker that dies is started again after so long, and after twice as long each time it dies soon. In milliseconds. */
const FIRST_PAUSE = 200;
const LONGEST_PAUSE = 30_000;
/** Who lived so long did not die soon. */
const SOON = 60_000;
/** How often connections are moved between workers, in milliseconds. */
const BALANCE_INTERVAL = 1000;
/** Connections that wait while no worker is there. */
const MAX_WAITING = 1000;

interface Slot {
  readonly number: number;
  worker: WorkerProcess;
  /** How often in a row its workers have died soon. */
  deaths: number;
  again: NodeJS.Timeout | undefined;
}

/**
 * The first of several processes on a machine: it keeps the database, accepts connections, and keeps workers that serve
 * them. It knows nothing of Matrix, so that it has no cause to be restarted.
 */
class Supervisor implements RunningServer {
  readonly failed: Promise<string>;
  readonly #config: Config;
  readonly #log: FastifyBaseLogger;
  readonly #args: readonly string[];
  readonly #database: OpenDatabase;
  readonly #secret = randomBytes(32).toString('base64url');
  readonly #slots: Slot[] = [];
  readonly #waiting: GivenConnection[] = [];
  #doors: Doors | undefined;
  readonly #placement: Placement;
  readonly #balancing: NodeJS.Timeout;
  #stopping = false;
  #restarts = 0;
  #restarting: Promise<void> | undefined;

  constructor(config: Config, log: FastifyBaseLogger, args: readonly string[], database: OpenDatabase) {
    this.#config = config;
    this.#log = log;
    this.#args = args;
    this.#database = database;
    this.#placement = new Placement(config.cluster.fill);
    this.#balancing = setInterval(() => this.#balance(), BALANCE_INTERVAL).unref();
    this.failed = database.died.then((words) => `PostgreSQL ended: ${words}`);
  }

  async start(count: number): Promise<void> {
    // Who comes early waits.
    this.#doors = await Doors.open(this.#config, (door, socket) => this.#lead({ door, socket }), true);
    for (let number = 1; number <= count; number++)
      this.#slots.push({ number, worker: this.#fork(number), deaths: 0, again: undefined });
    await Promise.all(this.#slots.map(({ worker }) => worker.ready));
    for (const slot of this.#slots) this.#lookAfter(slot);
    this.#serveWaiting();
    await this.#tell();
  }

  async reload(): Promise<void> {
    for (const { worker } of this.#slots) worker.reload();
  }

  /** Replaces one worker after the other, each by one that is ready. */
  restart(): Promise<void> {
    this.#restarting ??= this.#replaceAll().finally(() => {
      this.#restarting = undefined;
    });
    return this.#restarting;
  }

  async close(): Promise<void> {
    this.#stopping = true;
    clearInterval(this.#balancing);
    this.#doors?.close();
    for (const { socket } of this.#waiting.splice(0)) socket.destroy();
    await this.#restarting;
    for (const { again } of this.#slots) clearTimeout(again);
    await Promise.all(this.#slots.map(({ worker }) => worker.stop(false)));
    await rm(supervisorFile(this.#config), { force: true });
    await this.#database.close();
  }

  async #replaceAll(): Promise<void> {
    this.#log.info({ workers: this.#slots.length }, 'replacing all workers');
    let failure: string | undefined;
    for (const slot of this.#slots) {
      if (this.#stopping) return;
      failure = await this.#replace(slot).catch((error: Error) => error.message);
      if (failure === undefined) continue;
      this.#log.error({ worker: slot.number, why: failure }, 'a new worker did not start: the old ones stay');
      break;
    }
    this.#restarts++;
    if (failure === undefined) this.#log.info('all workers are replaced');
    if (!this.#stopping) await this.#tell(failure);
  }

  async #replace(slot: Slot): Promise<undefined> {
    const next = this.#fork(slot.number);
    await next.ready;
    const before = slot.worker;
    clearTimeout(slot.again);
    slot.worker = next;
    this.#lookAfter(slot);
    this.#serveWaiting();
    if (!before.isEnded) await before.stop(true);
  }

  #fork(number: number): WorkerProcess {
    const place = { worker: number, database: this.#database.connection, secret: this.#secret };
    return new WorkerProcess(this.#args, place, (connections) => {
      for (const connection of connections) this.#lead(connection);
    });
  }

  /** Starts it again when it dies. */
  #lookAfter(slot: Slot): void {
    const { worker, number } = slot;
    void worker.ended.then((how) => {
      if (this.#stopping || slot.worker !== worker) return;
      slot.deaths = Date.now() - worker.startedAt < SOON ? slot.deaths + 1 : 0;
      const pause = Math.min(FIRST_PAUSE * 2 ** Math.max(0, slot.deaths - 1), LONGEST_PAUSE);
      this.#log.error({ worker: number, how, pause }, 'a worker has ended and is started again');
      slot.again = setTimeout(() => this.#startAgain(slot), pause);
    });
  }

  #startAgain(slot: Slot): void {
    slot.worker = this.#fork(slot.number);
    this.#lookAfter(slot);
    slot.worker.ready.then(
      () => this.#serveWaiting(),
      () => {},
    );
  }

  #lead(connection: GivenConnection): void {
    if (this.#stopping) return void connection.socket.destroy();
    const worker = this.#placement.choose(this.#open());
    if (worker) return void worker.give(connection);
    this.#waiting.push(connection);
    if (this.#waiting.length > MAX_WAITING) this.#waiting.shift()!.socket.destroy();
  }

  #open(): WorkerProcess[] {
    return this.#slots.map(({ worker }) => worker).filter(({ isOpen }) => isOpen);
  }

  #balance(): void {
    const workers = this.#open();
    for (const { from, count } of this.#placement.moves(workers)) from.sendAway(count);
    for (const worker of workers) worker.given = 0;
  }

  #serveWaiting(): void {
    for (const connection of this.#waiting.splice(0)) this.#lead(connection);
  }

  async #tell(failure?: string): Promise<void> {
    await writeSupervisorState(this.#config, {
      pid: process.pid,
      workers: this.#slots.length,
      restarts: this.#restarts,
      failure,
    });
  }
}

/**
 * Starts the database and the workers.
 *
 * @param args of the command line, for the workers
 */
export async function supervise(
  config: Config,
  count: number,
  log: FastifyBaseLogger,
  args: readonly string[],
): Promise<RunningServer> {
  const several = config.redis !== undefined;
  await lockInstance(config.data_dir, several);
  // While all are replaced there is one more than usually.
  const database = await openDatabase(config, { processes: count + 1 });
  const supervisor = new Supervisor(config, log, args, database);
  try {
    if (database.migrated.length > 0) log.info({ migrations: database.migrated }, 'database migrated');
    await loadSigningKey(config, database.db, !several);
    await supervisor.start(count);
    return supervisor;
  } catch (error) {
    await supervisor.close();
    throw error;
  }
}
