import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { DeviceListChange, Stream } from '@trellis/storage/streams.ts';
import { parseServerAddress } from '../server-name.ts';
import type { FederationClient } from './client.ts';
import type { DeliveryStore } from './delivery-store.ts';
import { type DeliveryParts, Destination } from './destination.ts';
import { DeviceBacklog, type DeviceUpdates } from './device-backlog.ts';
import type { EphemeralEdus } from './ephemeral-edus.ts';
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
  /** Servers that this one federates with. */
  readonly isAllowed: (serverName: string) => boolean;
  readonly log: { warn(details: object, message: string): void };
  /** Transactions in flight at a time; 128 when left out. */
  readonly concurrency?: number;
}

/** What is in flight when the server stops has that long to be answered. */
const CLOSE_WAIT = 3_000;
const CHANGES_READ = 500;

/**
 * Delivers to every other server what concerns it: events in the order of each room, EDUs beside them, one
 * transaction at a time.
 *
 * 1. An event is announced: it waits in memory for each server of its room (`Destination`).
 * 2. It is sent at once, or when the transaction before it is answered (`Sender`).
 * 3. For whoever does not answer, positions in rooms are kept instead of events. They are written down in the
 *    background, together with the position up to which everything is delivered or written down (`ProgressKeeper`).
 * 4. At start, that position and what was written down say what is still to be delivered.
 */
export class FederationQueues {
  readonly #deps: QueuesDeps;
  readonly #parts: DeliveryParts;
  readonly #serverName: string;
  /** Only those that something is to be done for. */
  readonly #destinations = new Map<string, Destination>();
  readonly #sender: Sender;
  readonly #progress: ProgressKeeper;
  /** Changes of device lists are passed on one after the other. */
  #devicesPassedOn: Promise<void> = Promise.resolve();
  #devicesPos: number;

  constructor(deps: QueuesDeps) {
    const { store, client, rooms, memberships, deviceLists, log } = deps;
    const { stream, events, serverName } = rooms.parts;
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
    this.#progress = new ProgressKeeper({
      store,
      destinations: this.#destinations,
      positions: () => ({ events: stream.current, deviceLists: this.#devicesPos }),
      log,
    });
    this.#sender = new Sender({
      client,
      log,
      concurrency: deps.concurrency ?? 128,
      onRest: () => this.#progress.schedule(),
    });
    stream.subscribe((pos, change) => this.#onEvent(pos, change));
    deviceLists.subscribe((pos, change) => this.#onDeviceList(pos, change));
    client.backoff.onRecovered((name) => this.retry(name));
  }

  /** Takes up what was outstanding when the process ended. */
  async start(): Promise<void> {
    const { store, rooms, deviceLists } = this.#deps;
    const upTo = rooms.parts.stream.current;
    await store.prune();
    const progress = await store.progress();
    for (const row of await store.backlog()) this.#get(row.destination)?.restore(row);
    for (const [name, pos] of await store.deviceBacklog()) {
      const destination = this.#get(name);
      if (!destination) continue;
      destination.devices = new DeviceBacklog(pos, deviceLists.current, 'unknown');
      destination.devices.stored = pos;
    }
    for (const name of await store.destinationsWithEdus()) {
      const destination = this.#get(name);
      if (destination) destination.hasStoredEdus = true;
    }
    if (progress) {
      await this.#recoverEvents(progress.events, upTo);
      await this.#recoverDevices(progress.deviceLists);
    }
    this.#progress.start();
    this.#sender.start();
    for (const destination of this.#destinations.values()) this.#sender.deliver(destination);
  }

  /** There are new rows in `federation_edus` for these servers. */
  wake(names: Iterable<string>): void {
    for (const name of names) {
      const destination = this.#get(name);
      if (!destination) continue;
      destination.hasStoredEdus = true;
      this.#sender.deliver(destination);
    }
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
    await this.#sender.close(CLOSE_WAIT);
    for (const destination of this.#destinations.values()) {
      clearTimeout(destination.timer);
      destination.fallBehind();
    }
    await this.#devicesPassedOn;
    await this.#progress.close();
  }

  /** `undefined` for what this server does not talk to: itself, those not allowed, names that are none. */
  #get(name: string): Destination | undefined {
    let destination = this.#destinations.get(name);
    if (!destination) {
      if (name === this.#serverName || !parseServerAddress(name) || !this.#deps.isAllowed(name))
        return undefined;
      destination = new Destination(name, this.#parts);
      this.#destinations.set(name, destination);
    }
    return destination;
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
      for (const name of servers.after) add(name, false);
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
      if (onlyFor === undefined) await this.#passOnDevices(pos, userId, servers);
      this.#devicesPos = Math.max(this.#devicesPos, pos);
      this.#progress.schedule();
    });
  }

  async #passOnDevices(pos: number, userId: string, servers?: readonly string[] | null): Promise<void> {
    if (serverNameOf(userId) !== this.#serverName) return;
    try {
      for (const name of servers ?? (await this.#deps.memberships.serversSharingRoomWith(userId))) {
        const destination = this.#get(name);
        if (!destination) continue;
        destination.addDevice(userId, pos);
        this.#sender.deliver(destination);
      }
    } catch (err) {
      this.#deps.log.warn({ err, userId }, 'a change of devices could not be passed on');
    }
  }

  async #recoverEvents(after: number, upTo: number): Promise<void> {
    const { store, rooms } = this.#deps;
    for (const { pos, roomId, destinations, departed } of await undelivered(store, rooms, after, upTo)) {
      const room = rooms.peek(roomId);
      for (const name of destinations)
        this.#get(name)?.addPosition(roomId, pos, room?.servers.has(name) !== true);
      for (const name of departed) this.#destinations.get(name)?.leftRoom(roomId, pos);
    }
  }

  async #recoverDevices(after: number): Promise<void> {
    const { devices, deviceLists } = this.#deps;
    const upTo = deviceLists.current;
    for (let from = after; ; ) {
      const page = await devices.changes(from, upTo, CHANGES_READ);
      for (const { userId, pos, servers } of page) await this.#passOnDevices(pos, userId, servers);
      if (page.length < CHANGES_READ) return;
      from = page.at(-1)!.pos;
    }
  }
}
