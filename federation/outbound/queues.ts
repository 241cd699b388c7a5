import type { Cluster, Duty } from '@trellis/cluster/cluster.ts';
import { DutyMarks, type Marks } from '@trellis/cluster/duty-marks.ts';
import { Takeover } from '@trellis/cluster/takeover.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { DeviceListChange, Stream } from '@trellis/storage/streams.ts';
import { parseServerAddress } from '../server-name.ts';
import type { FederationClient } from './client.ts';
import type { BacklogRow, DeliveryStore } from './delivery-store.ts';
import { type DeliveryParts, Destination } from './destination.ts';
import { DeviceBacklog, type DeviceUpdates } from './device-backlog.ts';
import type { EphemeralEdus } from './ephemeral-edus.ts';
import { OwnedNames } from './owned-names.ts';
import { ProgressKeeper } from './progress.ts';
import { undelivered } from './recovery.ts';
import { Sender } from './sender.ts';

export interface QueuesDeps {
  readonly store: DeliveryStore;
  readonly client: FederationClient;
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly deviceLists: Stream<DeviceListChange>;
  readonly devices: DeviceUpdates;
  readonly cluster: Cluster;
  /** Servers that this one federates with. */
  readonly isAllowed: (serverName: string) => boolean;
  readonly log: { warn(details: object, message: string): void };
  /** Transactions in flight at a time; 128 when left out. */
  readonly concurrency?: number;
}

/** What is in flight when the server stops has that long to be answered. */
const CLOSE_WAIT = 3_000;
/** The same when another process takes over, while nobody sends. */
const RELEASE_WAIT = 250;
const CHANGES_READ = 500;
const ORPHANS_INTERVAL = 15_000;
const WAKE = 'federation/edus';

/** What those before have written down. */
interface Outstanding {
  readonly backlog: readonly BacklogRow[];
  readonly devices: ReadonlyMap<string, number>;
}

/**
 * Delivers to every other server what concerns it: events in the order of each room, EDUs beside them, one
 * transaction at a time.
 *
 * 1. An event is announced: it waits in memory for each server of its room (`Destination`).
 * 2. It is sent at once, or when the transaction before it is answered (`Sender`).
 * 3. For whoever does not answer, positions in rooms are kept instead of events. They are written down in the
 *    background, together with the position up to which everything is delivered or written down (`ProgressKeeper`).
 * 4. At start, that position and what was written down say what is still to be delivered.
 *
 * Of several processes each delivers to its own destinations. When one comes to another, what the one before knows of
 * it is written down, and the next goes on from there as at start (`Takeover`).
 */
export class FederationQueues {
  readonly #deps: QueuesDeps;
  readonly #parts: DeliveryParts;
  readonly #serverName: string;
  /** Only those that something is to be done for. */
  readonly #destinations = new Map<string, Destination>();
  readonly #sender: Sender;
  readonly #progress: ProgressKeeper;
  readonly #marks: DutyMarks;
  readonly #takeover: Takeover<Outstanding>;
  readonly #owned: OwnedNames;
  /** Changes of device lists are passed on one after the other. */
  #devicesPassedOn: Promise<void> = Promise.resolve();
  #devicesPos: number;
  #started = false;
  #hasTaken = false;
  #isClosed = false;
  /** Where it was when it gave something up; until it is known who has what from then on. */
  #releasedAt: Marks | undefined;
  #orphansTimer: NodeJS.Timeout | undefined;
  /** Servers with new EDUs that other processes are still to be told of. */
  #toWake = new Set<string>();
  #isTelling = false;

  constructor(deps: QueuesDeps) {
    const { store, client, rooms, memberships, deviceLists, cluster, log } = deps;
    const { stream, events, serverName, db } = rooms.parts;
    this.#deps = deps;
    this.#serverName = serverName;
    this.#parts = {
      store,
      events,
      devices: deps.devices,
      sharesRoom: async (userId, server) => (await memberships.serversSharingRoomWith(userId)).has(server),
      newest: () => stream.current,
    };
    this.#devicesPos = deviceLists.current;
    this.#marks = new DutyMarks(db, cluster, 'destination');
    this.#takeover = new Takeover<Outstanding>({
      marks: this.#marks,
      positions: () => this.#positions(),
      read: async () => ({ backlog: await store.backlog(), devices: await store.deviceBacklog() }),
      settle: (outstanding, upTo) => this.#settle(outstanding, upTo.events),
      recover: (from, upTo, missed) => this.#recover(from, upTo, missed),
      onFree: () => this.#deliverAll(),
      log,
    });
    this.#owned = new OwnedNames(cluster, () => this.#takeover.isSettled);
    this.#progress = new ProgressKeeper({
      store,
      marks: this.#marks,
      destinations: this.#destinations,
      positions: () => this.#takeover.floor(this.#positions()),
      log,
    });
    this.#sender = new Sender({
      client,
      log,
      concurrency: deps.concurrency ?? 128,
      isHeld: () => this.#takeover.isRecovering,
      onRest: () => this.#progress.schedule(),
    });
    stream.subscribe(
      (pos, change) => this.#onEvent(pos, change),
      ({ from, to }) => this.#onGap({ events: from }, { events: to }),
    );
    deviceLists.subscribe(
      (pos, change) => this.#onDeviceList(pos, change),
      ({ from, to }) => {
        this.#devicesPassedOn = this.#devicesPassedOn.then(() => {
          this.#devicesPos = Math.max(this.#devicesPos, to);
        });
        this.#onGap({ lists: from }, { lists: to });
      },
    );
    client.backoff.onRecovered((name) => this.retry(name));
    cluster.onAnnounce(WAKE, (names: readonly string[]) => this.#wakeOwn(names));
    cluster.onGap(() => {
      void this.#findEdus();
      if (!cluster.shared) this.#onGap({}, {});
    });
    cluster.onHandover({ release: (lost) => this.#release(lost), take: () => this.#take() });
  }

  /** To be called before this process can have any duties. */
  prepare(): Promise<void> {
    return this.#marks.prepare();
  }

  /** Takes up what was outstanding when the process ended, or before it came to others. */
  async start(): Promise<void> {
    await this.#deps.store.prune();
    this.#started = true;
    this.#sender.start();
    this.#take();
    if (this.#deps.cluster.shared)
      this.#orphansTimer = setInterval(() => void this.#adoptOrphans(), ORPHANS_INTERVAL).unref();
    else await this.#takeover.free();
  }

  /** There are new rows in `federation_edus` for these servers. */
  wake(names: Iterable<string>): void {
    if (!this.#deps.cluster.shared) {
      this.#wakeOwn(names);
      return;
    }
    for (const name of names) this.#toWake.add(name);
    if (!this.#isTelling) void this.#tellOthers();
  }

  /** There is reason to believe that a server can be reached again. */
  retry(name: string): void {
    const destination = this.#destinations.get(name);
    if (!destination) return;
    destination.notBefore = 0;
    this.#sender.deliver(destination);
  }

  /** Adds EDUs that are worth nothing later: servers that do not answer are left out. */
  addEphemeral(names: Iterable<string>, add: (edus: EphemeralEdus) => void): void {
    for (const name of names) {
      const destination = this.#deps.client.backoff.get(name) ? undefined : this.#get(name);
      if (!destination) continue;
      add(destination.ephemeral);
      this.#sender.deliver(destination);
    }
  }

  /** Lets what is in flight be answered and writes down what is not delivered. */
  async close(): Promise<void> {
    this.#started = false;
    clearInterval(this.#orphansTimer);
    this.#takeover.close();
    this.#marks.close();
    await this.#sender.close(CLOSE_WAIT);
    for (const destination of this.#destinations.values()) {
      clearTimeout(destination.timer);
      destination.fallBehind();
    }
    await this.#devicesPassedOn;
    await this.#progress.close();
    this.#isClosed = true;
    if (this.#releasedAt) await this.#marks.forget();
  }

  #positions(): Marks {
    return { events: this.#deps.rooms.parts.stream.current, lists: this.#devicesPos };
  }

  /** `undefined` for what is not this process's, and what no server talks to: itself, those not allowed, names that are none. */
  #get(name: string): Destination | undefined {
    let destination = this.#destinations.get(name);
    if (!destination) {
      if (name === this.#serverName || !parseServerAddress(name) || !this.#deps.isAllowed(name))
        return undefined;
      if (!this.#owned.has(name)) return undefined;
      destination = new Destination(name, this.#parts);
      this.#destinations.set(name, destination);
    }
    return destination;
  }

  #take(): void {
    if (!this.#started) return;
    this.#hasTaken = true;
    this.#releasedAt = undefined;
    this.#owned.taken();
    this.#takeover.take();
  }

  async #release(lost: (duty: Duty, key: string) => boolean): Promise<void> {
    if (!this.#hasTaken) return;
    // What happens from here on for those that are lost is passed over.
    this.#releasedAt ??= this.#takeover.floor(this.#positions());
    this.#takeover.release();
    const isLost = (name: string) => lost('destination', name);
    this.#owned.release(isLost);
    const destinations = [...this.#destinations.values()].filter(({ name }) => isLost(name));
    for (const { name } of destinations) this.#destinations.delete(name);
    await this.#sender.stop(destinations, RELEASE_WAIT);
    for (const destination of destinations) destination.fallBehind();
    const from = this.#releasedAt;
    await this.#progress.release(destinations, () => this.#takeover.floor(from));
    if (this.#isClosed) await this.#marks.forget();
  }

  #settle({ backlog, devices }: Outstanding, upTo: number): void {
    const gained = (name: string) => (this.#owned.isNew(name) ? this.#get(name) : undefined);
    this.#owned.settle(upTo);
    const restored = new Map<string, Destination>();
    for (const name of [...backlog.map(({ destination }) => destination), ...devices.keys()]) {
      const destination = restored.has(name) ? undefined : gained(name);
      if (destination) restored.set(name, destination);
    }
    for (const row of backlog) restored.get(row.destination)?.restore(row);
    for (const [name, pos] of devices) {
      const destination = restored.get(name);
      if (!destination) continue;
      destination.devices = new DeviceBacklog(pos, this.#deps.deviceLists.current, 'unknown');
      destination.devices.stored = pos;
    }
    this.#progress.start();
    void this.#findEdus();
  }

  #deliverAll(): void {
    for (const destination of this.#destinations.values()) this.#sender.deliver(destination);
  }

  async #adoptOrphans(): Promise<void> {
    if (await this.#marks.hasOrphans().catch(() => false)) this.#takeover.take();
  }

  async #findEdus(): Promise<void> {
    try {
      this.#wakeOwn(await this.#deps.store.destinationsWithEdus());
    } catch (err) {
      this.#deps.log.warn({ err }, 'messages to devices could not be looked for');
      setTimeout(() => void this.#findEdus(), 5_000).unref();
    }
  }

  #wakeOwn(names: Iterable<string>): void {
    for (const name of names) {
      const destination = this.#get(name);
      if (!destination) continue;
      destination.hasStoredEdus = true;
      this.#sender.deliver(destination);
    }
  }

  async #tellOthers(): Promise<void> {
    this.#isTelling = true;
    while (this.#toWake.size > 0) {
      const names = this.#toWake;
      this.#toWake = new Set();
      try {
        await this.#deps.cluster.announce(WAKE, [...names]);
      } catch (err) {
        // Whoever takes over from this process looks for what there is.
        if (!this.#started) break;
        this.#deps.log.warn({ err }, 'other processes could not be told of messages to devices');
        this.#toWake = this.#toWake.union(names);
        await new Promise((wake) => setTimeout(wake, 1_000).unref());
      }
    }
    this.#isTelling = false;
  }

  #onEvent(pos: number, change: EventChange): void {
    const { event, roomId, servers, memberships, relayFrom, passedOnByOthers } = change;
    const uninvited = memberships.length > 0 ? this.#uninvited(memberships) : [];
    if (!servers || (servers.before.length === 0 && servers.after.length === 0 && uninvited.length === 0)) {
      this.#progress.moved();
      return;
    }
    const remaining = servers.before === servers.after ? undefined : new Set(servers.after);
    const departed = remaining ? servers.before.filter((server) => !remaining.has(server)) : [];
    const sender = serverNameOf(event.sender);
    const isOurs = relayFrom !== undefined || (sender === this.#serverName && !passedOnByOthers);
    if (event.status === 'accepted' && isOurs) {
      const add = (name: string, isLast: boolean) => {
        const destination = name === sender || name === relayFrom ? undefined : this.#get(name);
        if (!destination) return;
        destination.add(event, pos, roomId, isLast);
        this.#sender.deliver(destination);
      };
      for (const name of this.#owned.of(servers.after)) add(name, false);
      for (const name of new Set([...departed, ...uninvited]))
        if (!servers.after.includes(name)) add(name, true);
    }
    for (const name of departed) this.#destinations.get(name)?.leftRoom(roomId, pos);
    this.#progress.schedule();
  }

  /** Servers of users whose invite or knock has ended: they are not in the room, but have to know. */
  #uninvited(memberships: EventChange['memberships']): string[] {
    return memberships
      .filter(({ before, after }) => (before === 'invite' || before === 'knock') && after !== 'join')
      .map(({ userId }) => serverNameOf(userId))
      .filter((server) => server !== this.#serverName);
  }

  #onDeviceList(pos: number, { userId, servers, onlyFor }: DeviceListChange): void {
    this.#devicesPassedOn = this.#devicesPassedOn.then(async () => {
      try {
        if (onlyFor === undefined) await this.#passOnDevices(pos, userId, servers);
      } catch (err) {
        this.#deps.log.warn({ err, userId }, 'a change of devices could not be passed on: trying again');
        this.#onGap({ lists: pos - 1 }, { lists: pos });
      }
      this.#devicesPos = Math.max(this.#devicesPos, pos);
      this.#progress.schedule();
    });
  }

  async #passOnDevices(pos: number, userId: string, servers?: readonly string[] | null): Promise<void> {
    if (serverNameOf(userId) !== this.#serverName) return;
    const names = servers ?? (await this.#deps.memberships.serversSharingRoomWith(userId));
    for (const name of names) {
      const destination = this.#get(name);
      if (!destination) continue;
      destination.addDevice(userId, pos);
      this.#sender.deliver(destination);
    }
    // In one go with the above: what is not followed yet is looked for up to here.
    this.#devicesPos = Math.max(this.#devicesPos, pos);
  }

  #onGap(from: Partial<Marks>, to: Partial<Marks>): void {
    if (!this.#started) return;
    const whole = { events: Number.POSITIVE_INFINITY, lists: Number.POSITIVE_INFINITY };
    // Nobody knows whether there was something, and where: the connection to the database was lost.
    const isDoubt = from.events === to.events && from.lists === to.lists;
    if (isDoubt) this.#takeover.gap(this.#marks.stored ?? this.#positions(), this.#positions());
    else this.#takeover.gap({ ...whole, ...from }, { ...whole, ...to });
  }

  async #recover(from: Marks, upTo: Marks, missed: boolean): Promise<void> {
    if (from.events < upTo.events) await this.#recoverEvents(from.events, upTo.events, missed);
    if (from.lists < upTo.lists) await this.#recoverDevices(from.lists, upTo.lists);
  }

  /** @param missed those followed already have not heard of it either */
  async #recoverEvents(after: number, upTo: number, missed: boolean): Promise<void> {
    const { store, rooms } = this.#deps;
    for (const { pos, roomId, destinations, departed } of await undelivered(store, rooms, after, upTo)) {
      const room = rooms.peek(roomId);
      for (const name of destinations)
        if (missed || !this.#owned.isFollowed(name, pos))
          this.#get(name)?.addPosition(roomId, pos, room?.servers.has(name) !== true);
      for (const name of departed) this.#destinations.get(name)?.leftRoom(roomId, pos);
    }
  }

  async #recoverDevices(after: number, upTo: number): Promise<void> {
    const { devices } = this.#deps;
    for (let from = after; ; ) {
      const page = await devices.changes(from, upTo, CHANGES_READ);
      for (const { userId, pos, servers } of page) await this.#passOnDevices(pos, userId, servers);
      if (page.length < CHANGES_READ) return;
      from = page.at(-1)!.pos;
    }
  }
}
