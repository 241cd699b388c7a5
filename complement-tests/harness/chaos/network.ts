import type { Machine } from '../machine.ts';
import type { TestServer } from '../server.ts';
import type { Surroundings } from './surroundings.ts';

/** How a way from one server to another behaves while something is wrong with it. */
export interface Trouble {
  /** `refuse`: connections are reset. `swallow`: nothing comes through, and nobody is told. */
  readonly kind: 'refuse' | 'swallow' | 'delay';
  readonly ms?: number;
}

/** What lies between servers. They are numbers, in the order in which they were started. */
export interface Network {
  /** Where a server is to run. */
  machine(server: number): Machine;
  /** To be called once all are there. @returns by server: which of its connections go elsewhere than it thinks */
  connect(servers: readonly TestServer[]): Promise<Array<Surroundings['links']>>;
  /** @returns what ends it */
  trouble(from: number, to: number, trouble: Trouble): () => void;
  /** Connections between servers so far. */
  connections(): number;
  close(): void;
}
