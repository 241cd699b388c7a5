import type { DeliveryStore, Progress } from './delivery-store.ts';
import type { Destination } from './destination.ts';

export interface ProgressKeeperDeps {
  readonly store: DeliveryStore;
  readonly destinations: Map<string, Destination>;
  /** Everything up to these positions has been handed to the destinations that it concerns. */
  readonly positions: () => Progress;
  readonly log: { warn(details: object, message: string): void };
}

/** What is outstanding is written down that often. */
const INTERVAL = 1_000;
/** The same while nothing concerns other servers: only how far we have come. */
const QUIET_INTERVAL = 10_000;
/** A destination that got nothing for that long no longer holds events in memory. */
const SLOW = 5_000;

/**
 * Writes down, in the background, what destinations lack, and up to where nothing else is outstanding. Servers that
 * keep up cost one row of progress a second; at worst, what was delivered in the last second is delivered again.
 */
export class ProgressKeeper {
  readonly #deps: ProgressKeeperDeps;
  #saved: Progress | undefined;
  #timer: NodeJS.Timeout | undefined;
  #soon = false;
  #saving: Promise<void> = Promise.resolve();
  /** Nothing is written before it is known what was outstanding. */
  #started = false;

  constructor(deps: ProgressKeeperDeps) {
    this.#deps = deps;
  }

  start(): void {
    this.#started = true;
    this.schedule();
  }

  /** Something changed for a destination. */
  schedule(): void {
    if (this.#soon || !this.#started) return;
    this.#soon = true;
    this.#arm(INTERVAL);
  }

  /** Positions moved on, with nothing for other servers. */
  moved(): void {
    if (this.#timer === undefined && this.#started) this.#arm(QUIET_INTERVAL);
  }

  async close(): Promise<void> {
    if (!this.#started) return;
    this.#started = false;
    clearTimeout(this.#timer);
    await this.#saving;
    await this.#save();
  }

  #arm(interval: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#soon = false;
      this.#saving = this.#saving.then(() => this.#save());
    }, interval).unref();
  }

  async #save(): Promise<void> {
    const { store, destinations, log, positions } = this.#deps;
    const now = Date.now();
    const progress = { ...positions() };
    const changes = [];
    const devices = new Map<string, number | undefined>();
    let busy = false;
    for (const destination of destinations.values()) {
      const { name } = destination;
      if (destination.oldestLive !== undefined && now - destination.progressAt > SLOW)
        destination.fallBehind();
      const { oldestLive } = destination;
      if (oldestLive !== undefined) {
        progress.events = Math.min(progress.events, oldestLive - 1);
        busy = true;
      }
      if (destination.backlog.hasChanges) changes.push(destination.backlog.takeChanges());
      const lists = destination.devices;
      if (lists && !lists.isEmpty && lists.stored !== lists.pos) devices.set(name, lists.pos);
      else if (lists?.isEmpty && lists.stored !== undefined) devices.set(name, undefined);
    }
    const isNews =
      changes.length > 0 ||
      devices.size > 0 ||
      this.#saved?.events !== progress.events ||
      this.#saved.deviceLists !== progress.deviceLists;
    if (isNews) {
      try {
        await store.save(progress, {
          put: changes.flatMap(({ put }) => put),
          removed: changes.flatMap(({ removed }) => removed),
          devices,
        });
        this.#saved = progress;
        for (const [name, pos] of devices) {
          const lists = destinations.get(name)?.devices;
          if (lists) lists.stored = pos;
        }
      } catch (err) {
        log.warn({ err }, 'the progress of deliveries could not be stored');
        for (const { failed } of changes) failed();
        busy = true;
      }
    }
    for (const [name, destination] of destinations) if (destination.isIdle) destinations.delete(name);
    if (busy) this.schedule();
  }
}
