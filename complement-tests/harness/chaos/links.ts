import { type Machine, THIS_MACHINE } from '../machine.ts';
import type { TestServer } from '../server.ts';
import { Link } from './link.ts';
import type { Network, Trouble } from './network.ts';
import type { Surroundings } from './surroundings.ts';

/** All servers are on this machine, with a link from each to each. */
export class Links implements Network {
  #links: Link[][] = [];

  machine(): Machine {
    return THIS_MACHINE;
  }

  async connect(servers: readonly TestServer[]): Promise<Array<Surroundings['links']>> {
    this.#links = servers.map(() => servers.map((to) => new Link(to.federationPort)));
    return Promise.all(
      this.#links.map(async (links, from) => {
        const ports: Record<string, number> = {};
        for (const [to, link] of links.entries())
          if (to !== from) ports[servers[to]!.federationPort] = await link.open();
        return ports;
      }),
    );
  }

  trouble(from: number, to: number, trouble: Trouble): () => void {
    return this.#links[from]![to]!.trouble(trouble);
  }

  connections(): number {
    return this.#links.flat().reduce((sum, { count }) => sum + count, 0);
  }

  close(): void {
    for (const link of this.#links.flat()) link.close();
  }
}
