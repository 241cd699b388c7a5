import type { DatabaseHosts, HostClient } from './database-hosts.ts';
import { saysAway } from './unavailable.ts';

/** How long a statement may take before a look at whether the server is there at all, in milliseconds. */
const PATIENCE = 5_000;
/** Looks that fail in a row before connections are given up. */
const FAILURES = 2;

/**
 * A server that vanishes (its machine fails, the network is cut) says nothing: statements would wait a quarter of an
 * hour for the operating system to give up. So when one takes long, the server is asked by a new connection whether it
 * is there, and when it is not, its connections are cut.
 */
export class ConnectionWatch {
  readonly #clients: ReadonlySet<HostClient>;
  readonly #hosts: DatabaseHosts;
  readonly #timer: NodeJS.Timeout;
  readonly #patience: number;
  #isLooking = false;

  constructor(clients: ReadonlySet<HostClient>, hosts: DatabaseHosts, patience = PATIENCE) {
    this.#clients = clients;
    this.#hosts = hosts;
    this.#patience = patience;
    this.#timer = setInterval(() => void this.#look(), patience / 2).unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    try {
      for (const index of this.#slow()) {
        let failures = 0;
        while (failures < FAILURES && this.#slow().has(index) && !(await this.#isThere(index))) failures++;
        if (failures === FAILURES)
          for (const client of this.#clients) if (client.hostIndex === index) client.cut();
      }
    } finally {
      this.#isLooking = false;
    }
  }

  /** Hosts that have not answered for a while. */
  #slow(): Set<number> {
    const since = Date.now() - this.#patience;
    const slow = new Set<number>();
    for (const { busySince, hostIndex } of this.#clients)
      if (busySince !== undefined && busySince < since) slow.add(hostIndex);
    return slow;
  }

  async #isThere(index: number): Promise<boolean> {
    const client = this.#hosts.clientTo(index);
    try {
      await client.connect();
      return true;
    } catch (error) {
      // Who refuses by name or password is there, and so is who has too many connections.
      return !saysAway(error) || (error as { code?: unknown }).code === '53300';
    } finally {
      client.end().catch(() => {});
    }
  }
}
