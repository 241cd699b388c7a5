import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { startServer, type TestServer } from '../server.ts';
import { Links } from './links.ts';
import { Namespaces } from './namespaces.ts';
import type { Network } from './network.ts';
import type { Random } from './random.ts';
import type { Fault } from './schedule.ts';
import type { Surroundings } from './surroundings.ts';

const SURROUNDINGS = new URL('./surroundings.ts', import.meta.url).href;
/** Clocks are wrong by up to this. */
const MAX_SKEW_MS = 10 * 60_000;
/** Servers that are started at the same time. */
const STARTED_TOGETHER = 3;

/** Servers with links between them, and what goes wrong with them. */
export class Cluster {
  readonly servers: TestServer[] = [];
  readonly #random: Random;
  #network: Network | undefined;
  readonly #skews: number[] = [];
  #healed = false;
  /** Starting and stopping a server, one after the other: a busy machine takes longer than the schedule thinks. */
  readonly #turns: Array<Promise<void>> = [];
  /** What ends the faults that last. */
  readonly #repairs = new Set<() => Promise<void>>();

  constructor(random: Random) {
    this.#random = random;
  }

  /** @param isApart each server in a network namespace of its own */
  async start(count: number, isApart: boolean): Promise<void> {
    this.#network = isApart ? new Namespaces(count) : new Links();
    for (let started = 0; started < count; started += STARTED_TOGETHER) {
      const some = Array.from({ length: Math.min(STARTED_TOGETHER, count - started) }, (_, i) =>
        this.#startOne(started + i),
      );
      this.servers.push(...(await Promise.all(some)));
    }
    const links = await this.#network.connect(this.servers);
    for (const [i, server] of this.servers.entries())
      this.#tell(server, { skew: this.#skews[i]!, links: links[i]! });
  }

  /** Makes a fault happen, and be over when its time is. */
  async run(fault: Fault): Promise<void> {
    const begun = performance.now();
    const repair = await this.#begin(fault);
    const done = Promise.withResolvers<void>();
    let ended: Promise<void> | undefined;
    const end = () => {
      ended ??= repair().finally(() => {
        this.#repairs.delete(end);
        done.resolve();
      });
      return ended;
    };
    this.#repairs.add(end);
    if (this.#healed) return end();
    const left = (fault.until - fault.at) * 1000 - (performance.now() - begun);
    const timer = setTimeout(end, Math.max(0, left));
    await done.promise;
    clearTimeout(timer);
    await ended;
  }

  /** Connections between servers so far. */
  get connections(): number {
    return this.#network?.connections() ?? 0;
  }

  /** Ends all faults: every server runs, every link is open. */
  async heal(): Promise<void> {
    this.#healed = true;
    await Promise.all([...this.#repairs].map((end) => end()));
  }

  async close(): Promise<void> {
    this.#network?.close();
    await Promise.all(this.servers.map((server) => server.close()));
  }

  async #startOne(index: number): Promise<TestServer> {
    const skew = Math.round(this.#random.for(`skew ${index}`).between(-MAX_SKEW_MS, MAX_SKEW_MS));
    this.#skews[index] = skew;
    return startServer({
      name: `chaos-${index}`,
      machine: this.#network!.machine(index),
      config: { log: { level: 'info' } },
      prepare: (folder) => {
        const file = join(folder, 'surroundings.json');
        writeFileSync(file, JSON.stringify({ skew, links: {} } satisfies Surroundings));
        const options = [process.env.NODE_OPTIONS, `--import=${SURROUNDINGS}`].filter(Boolean).join(' ');
        return { NODE_OPTIONS: options, TRELLIS_CHAOS_SURROUNDINGS: file };
      },
    });
  }

  #tell(server: TestServer, surroundings: Surroundings): void {
    writeFileSync(join(server.folder, 'surroundings.json'), JSON.stringify(surroundings));
  }

  async #begin(fault: Fault): Promise<() => Promise<void>> {
    if ('pairs' in fault) {
      const { kind } = fault;
      const trouble = kind === 'delay' ? { kind, ms: fault.ms } : { kind };
      const ends = fault.pairs.map(([from, to]) => this.#network!.trouble(from, to, trouble));
      return async () => {
        for (const end of ends) end();
      };
    }
    const server = this.servers[fault.server]!;
    if (fault.kind === 'pause') {
      await this.#inTurn(fault.server, async () => server.pause());
      return () => this.#inTurn(fault.server, async () => server.resume());
    }
    await this.#inTurn(fault.server, () => (fault.kind === 'kill' ? server.kill() : server.stop()));
    return () => this.#inTurn(fault.server, () => server.start());
  }

  #inTurn(server: number, work: () => Promise<void>): Promise<void> {
    const turn = (this.#turns[server] ?? Promise.resolve()).then(work);
    this.#turns[server] = turn;
    return turn;
  }
}
