import { type DutyMarks, type Marks, TakenUpError } from '@trellis/cluster/duty-marks.ts';
import type { BacklogChanges, DeliveryStore } from './delivery-store.ts';
import type { Destination } from './destination.ts';
import type { DeviceBacklog } from './device-backlog.ts';

export interface ProgressKeeperDeps {
  readonly store: DeliveryStore;
  readonly marks: DutyMarks;
  readonly destinations: Map<string, Destination>;
  /** Everything up to these positions has been handed to the destinations that it concerns. */
  readonly positions: () => Marks;
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
  #saved: Marks | undefined;
  #timer: NodeJS.Timeout | undefined;
  #soon = false;
  #saving: Promise<void> = Promise.resolve();
  /** Nothing is written before it is known what was outstanding. */
  #started = false;

  constructor(deps: ProgressKeeperDeps) {
    this.#deps = deps;
  }

  start(): void {
    if (this.#started) return;
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

  /**
   * Writes down all about destinations that others deliver to from now on: they have fallen behind. With that the
   * progress is stored, and so what it stands for at the destinations that are kept.
   *
   * @param lost no longer among those of this process
   * @param from where others have to look from
   */
  async release(lost: readonly Destination[], from: () => Marks): Promise<void> {
    const { marks, store, destinations, log } = this.#deps;
    for (;;) {
      let changes: Changes | undefined;
      try {
        await marks.release(
          () => {
            changes = this.#changesOf([...lost, ...destinations.values()]);
            return this.#progress();
          },
          from,
          (tx) => store.save(tx, changes!.rows),
        );
        changes?.stored();
        return;
      } catch (err) {
        changes?.failed();
        if (err instanceof TakenUpError) throw err;
        log.warn({ err }, 'what others have to deliver from now on could not be stored: trying again');
        await new Promise((wake) => setTimeout(wake, INTERVAL).unref());
      }
    }
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
    const { store, marks, destinations, log } = this.#deps;
    this.#dropSlow();
    let busy = false;
    let changes: Changes | undefined;
    try {
      if (this.#hasNews()) {
        this.#saved = await marks.save(
          () => {
            changes = this.#changesOf(destinations.values());
            return this.#progress();
          },
          (tx) => store.save(tx, changes!.rows),
        );
        changes?.stored();
      }
    } catch (err) {
      changes?.failed();
      // Others deliver what was this process's, which is about to end.
      if (err instanceof TakenUpError) return;
      log.warn({ err }, 'the progress of deliveries could not be stored');
      busy = true;
    }
    for (const [name, destination] of destinations) {
      busy ||= destination.oldestLive !== undefined;
      if (destination.isIdle) destinations.delete(name);
    }
    if (busy) this.schedule();
  }

  #dropSlow(): void {
    const now = Date.now();
    for (const destination of this.#deps.destinations.values())
      if (destination.oldestLive !== undefined && now - destination.progressAt > SLOW)
        destination.fallBehind();
  }

  /** Where everything is delivered or written down, once what is changed is. */
  #progress(): Marks {
    const { destinations, positions } = this.#deps;
    let { events, lists } = positions();
    for (const { oldestLive } of destinations.values())
      if (oldestLive !== undefined) events = Math.min(events, oldestLive - 1);
    return { events, lists };
  }

  #hasNews(): boolean {
    const { events, lists } = this.#progress();
    if (this.#saved?.events !== events || this.#saved.lists !== lists) return true;
    for (const { backlog, devices } of this.#deps.destinations.values())
      if (backlog.hasChanges || isNews(devices)) return true;
    return false;
  }

  #changesOf(destinations: Iterable<Destination>): Changes {
    const changes: Array<ReturnType<Destination['backlog']['takeChanges']>> = [];
    const devices = new Map<string, number | undefined>();
    const lists: DeviceBacklog[] = [];
    for (const destination of destinations) {
      if (destination.backlog.hasChanges) changes.push(destination.backlog.takeChanges());
      if (!isNews(destination.devices)) continue;
      devices.set(destination.name, destination.devices.isEmpty ? undefined : destination.devices.pos);
      lists.push(destination.devices);
    }
    return {
      rows: {
        put: changes.flatMap(({ put }) => put),
        removed: changes.flatMap(({ removed }) => removed),
        devices,
      },
      stored: () => {
        for (const [index, pos] of [...devices.values()].entries()) lists[index]!.stored = pos;
      },
      failed: () => {
        for (const { failed } of changes) failed();
      },
    };
  }
}

interface Changes {
  readonly rows: BacklogChanges;
  stored(): void;
  failed(): void;
}

/** Whether the database says something else of where a destination stands. */
function isNews(devices: DeviceBacklog | undefined): devices is DeviceBacklog {
  if (!devices) return false;
  return devices.isEmpty ? devices.stored !== undefined : devices.stored !== devices.pos;
}
