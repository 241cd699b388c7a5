import type { Bus, BusEvents, Peer } from '../bus.ts';
import type { Json } from '../cluster.ts';

/** Connects buses within one process: a lossless network with a latency, from which members can be cut off. */
export class Hub {
  readonly #buses = new Map<string, HubBus>();
  readonly latency: () => number;

  constructor(latency: () => number = () => 0) {
    this.latency = latency;
  }

  bus(self: string): HubBus {
    const bus = new HubBus(self, this);
    this.#buses.set(self, bus);
    return bus;
  }

  get(id: string): HubBus | undefined {
    return this.#buses.get(id);
  }

  /** As if the process were killed: nothing goes out or comes in any more, and others notice. */
  kill(id: string): void {
    const dead = this.#buses.get(id);
    if (!dead) return;
    dead.cut = true;
    this.#buses.delete(id);
    setTimeout(() => {
      for (const bus of this.#buses.values()) bus.lost(id);
    }, 5);
  }

  /** As if the process were stopped: others hold it for dead, it finds out when it goes on. */
  freeze(id: string): void {
    this.kill(id);
  }
}

export class HubBus implements Bus {
  readonly self: string;
  readonly address: string;
  cut = false;
  readonly #hub: Hub;
  #events: BusEvents | undefined;
  readonly #connected = new Set<string>();
  readonly #down = new Set<string>();
  readonly #last = new Map<string, Promise<void>>();

  constructor(self: string, hub: Hub) {
    this.self = self;
    this.address = `hub:${self}`;
    this.#hub = hub;
  }

  async start(events: BusEvents): Promise<void> {
    this.#events = events;
  }

  connect({ id }: Peer): void {
    if (this.#connected.has(id) || this.#down.has(id)) return;
    this.#connected.add(id);
    if (!this.#hub.get(id)) setTimeout(() => this.lost(id), 5);
  }

  disconnect(id: string): void {
    this.#connected.delete(id);
  }

  send(to: string | readonly string[], message: Json): void {
    const text = JSON.stringify(message);
    for (const id of typeof to === 'string' ? [to] : to) {
      const before = this.#last.get(id) ?? Promise.resolve();
      const after = before.then(async () => {
        await new Promise((there) => setTimeout(there, this.#hub.latency()));
        if (!this.cut) this.#hub.get(id)?.deliver(this.self, JSON.parse(text) as Json);
      });
      this.#last.set(id, after);
    }
  }

  deliver(from: string, message: Json): void {
    if (this.cut || this.#down.has(from)) return;
    this.#connected.add(from);
    this.#events?.message(from, message);
  }

  lost(id: string): void {
    if (this.cut || !this.#connected.has(id) || this.#down.has(id)) return;
    this.#down.add(id);
    this.#events?.down(id, 'died');
  }

  async close(): Promise<void> {
    this.#hub.kill(this.self);
  }
}
