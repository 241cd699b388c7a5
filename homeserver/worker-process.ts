import { type ChildProcess, fork } from 'node:child_process';
import type { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { DoorName } from './doors.ts';
import type { Load, Placed } from './placement.ts';
import type { FromWorker, Place, ToWorker } from './worker-messages.ts';

const PROGRAM = fileURLToPath(new URL('./worker.ts', import.meta.url));
/** A worker that has not ended by then, when it is told to, is killed. In milliseconds. */
const STOP_LIMIT = 60_000;

export interface GivenConnection {
  readonly door: DoorName;
  readonly socket: Socket;
}

/** A worker as its supervisor sees it. */
export class WorkerProcess implements Placed {
  /** When it serves; rejects with what it says when it cannot start. */
  readonly ready: Promise<void>;
  /** How it ended. */
  readonly ended: Promise<string>;
  readonly startedAt = Date.now();
  load: Load = { busy: 0, connections: 0, isHome: false };
  /** To be set back now and then. */
  given = 0;
  readonly #child: ChildProcess;
  /** What it has not confirmed to have. */
  readonly #given = new Map<number, GivenConnection>();
  #count = 0;
  #isReady = false;
  #isEnded = false;

  /**
   * @param args of the command line: a worker reads the configuration itself
   * @param back what it was given and did not get, when it has ended
   */
  constructor(args: readonly string[], place: Place, back: (connections: GivenConnection[]) => void) {
    this.#child = fork(PROGRAM, [...args], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const ready = Promise.withResolvers<void>();
    let why: string | undefined;
    this.#child.on('message', (message: FromWorker) => {
      switch (message.t) {
        case 'hello':
          return this.#send({ t: 'start', place });
        case 'ready':
          this.#isReady = true;
          return ready.resolve();
        case 'got':
          // The worker has it open as well: only this process's half is closed.
          this.#given.get(message.n)?.socket.destroy();
          return void this.#given.delete(message.n);
        case 'load':
          this.load = message.load;
          return;
        case 'refused':
          why = message.why;
      }
    });
    this.#child.on('error', () => {});
    this.ended = new Promise((done) => {
      this.#child.once('exit', (code, signal) => {
        this.#isEnded = true;
        const how = why ?? `worker ${place.worker} ended: ${signal ?? `code ${code}`}`;
        ready.reject(new Error(how));
        back([...this.#given.values()]);
        this.#given.clear();
        done(how);
      });
    });
    this.ready = ready.promise;
    this.ready.catch(() => {});
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** Whether connections may be given to it. */
  get isOpen(): boolean {
    return this.#isReady && !this.#isEnded;
  }

  give(connection: GivenConnection): void {
    const n = ++this.#count;
    this.given++;
    this.#given.set(n, connection);
    this.#send({ t: 'connection', n, door: connection.door }, connection.socket);
  }

  sendAway(count: number): void {
    this.#send({ t: 'send-away', count });
  }

  reload(): void {
    this.#send({ t: 'reload' });
  }

  /** @param drain whether others go on serving */
  async stop(drain: boolean): Promise<void> {
    this.#isReady = false;
    this.#send({ t: 'stop', drain });
    const late = setTimeout(() => this.kill(), STOP_LIMIT);
    await this.ended;
    clearTimeout(late);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #send(message: ToWorker, socket?: Socket): void {
    // One that is ending takes nothing any more; what it was given is given back.
    if (this.#child.connected) this.#child.send(message, socket, { keepOpen: true }, () => {});
  }
}
