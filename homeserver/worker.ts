/** One of several processes that a supervisor (supervisor.ts) started. */
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { configFrom, explain, openLog, readCommandLine } from './command-line.ts';
import type { Load } from './placement.ts';
import { startServer } from './server.ts';
import type { FromWorker, Place, ToWorker } from './worker-messages.ts';

/** How often a worker says how busy it is, in milliseconds, and what difference is worth a word. */
const LOAD_INTERVAL = 1000;
const WORTH_TELLING = 0.02;

class Worker {
  #server: Awaited<ReturnType<typeof startServer>> | undefined;
  #log: Logger | undefined;
  #stopping = false;

  async handle(message: ToWorker, socket: Socket | undefined): Promise<void> {
    switch (message.t) {
      case 'start':
        return this.#start(message.place).catch((error: unknown) => this.#refuse(error));
      case 'connection':
        tell({ t: 'got', n: message.n });
        // Undefined when it was closed on the way.
        if (socket) this.#server?.give(message.door, socket);
        return;
      case 'send-away':
        return this.#server?.sendAway(message.count);
      case 'reload':
        return this.#server?.reload().then(
          () => this.#log?.info('certificate read again'),
          (err: unknown) => this.#log?.error({ err }, 'the certificate could not be read: the old one stays'),
        );
      case 'stop':
        return this.#stop(message.drain);
    }
  }

  async #start(place: Place): Promise<void> {
    const { values } = readCommandLine();
    const config = configFrom(values.config);
    const log = openLog(config, { worker: place.worker, pid: process.pid });
    this.#log = log;
    const server = await startServer(config, log, place);
    this.#server = server;
    void server.failed.then((reason) => {
      log.fatal(reason);
      log.flush(() => process.exit(1));
    });
    log.info('started');
    tell({ t: 'ready' });
    this.#tellLoad(server);
  }

  #tellLoad({ standing }: Awaited<ReturnType<typeof startServer>>): void {
    let before = performance.eventLoopUtilization();
    let told: Load | undefined;
    const look = (busy: number) => {
      const load = { busy, ...standing() };
      const isNews =
        told === undefined ||
        Math.abs(load.busy - told.busy) > WORTH_TELLING ||
        load.connections !== told.connections ||
        load.isHome !== told.isHome;
      if (!isNews) return;
      told = load;
      tell({ t: 'load', load });
    };
    look(0);
    setInterval(() => {
      const now = performance.eventLoopUtilization();
      look(performance.eventLoopUtilization(now, before).utilization);
      before = now;
    }, LOAD_INTERVAL).unref();
  }

  #refuse(error: unknown): void {
    if (this.#stopping) return;
    process.send!({ t: 'refused', why: explain(error) } satisfies FromWorker, () => process.exit(1));
  }

  async #stop(drain: boolean): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    await this.#server?.close(drain);
    const exit = () => process.exit(0);
    if (this.#log) this.#log.flush(exit);
    else exit();
  }
}

function tell(message: FromWorker): void {
  process.send!(message, () => {});
}

const worker = new Worker();
process.on(
  'message',
  (message: ToWorker, socket) => void worker.handle(message, socket as Socket | undefined),
);
// The supervisor gives no word any more: whatever it would have been is not done.
process.on('disconnect', () => process.exit(1));
// Signals to all processes are for the supervisor, which tells each what to do.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR2'] as const) process.on(signal, () => {});
tell({ t: 'hello' });
