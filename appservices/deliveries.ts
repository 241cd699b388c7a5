import type { Cluster, Duty } from '@trellis/cluster/cluster.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Streams } from '@trellis/storage/streams.ts';
import { KeyedQueue } from '@trellis/users/keyed-queue.ts';
import type { AppserviceClient } from './client.ts';
import { Delivery, type DeliveryParts } from './delivery.ts';
import { DeliveryStore, type Positions } from './delivery-store.ts';
import { DeviceMessages } from './device-messages.ts';
import { DeviceNews, type KeyCounts } from './device-news.ts';
import { EphemeralNews } from './ephemeral-news.ts';
import { Interest } from './interest.ts';
import { NewsFeed } from './news-feed.ts';
import type { Appservice, Appservices } from './registry.ts';
import type { RoomAliases } from './room-aliases.ts';
import { Transactions } from './transactions.ts';

export interface DeliveriesDeps {
  readonly cluster: Cluster;
  readonly services: Appservices;
  readonly client: AppserviceClient;
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly aliases: RoomAliases;
  readonly streams: Pick<Streams, 'receipts' | 'typing' | 'presence' | 'toDevice' | 'deviceLists'>;
  readonly keyCounts: KeyCounts;
  readonly received: DeliveryParts['received'];
  readonly log: DeliveryParts['log'];
}

/** What is in flight when the server stops has that long to be answered, in milliseconds. */
const CLOSE_WAIT_MS = 3_000;
/** The same when another process takes over: it sends the same transaction again. */
const RELEASE_WAIT_MS = 500;
const RETRY_MS = 1_000;
/** Milliseconds after which another process is told again that a service shows itself alive. */
const TELL_AGAIN_MS = 5_000;
const FAILING = 'appservices/failing';
const ALIVE = 'appservices/alive';

/** One service, and what waits for it. */
interface Line {
  readonly service: Appservice;
  readonly delivery: Delivery;
  readonly ephemeral: EphemeralNews;
  readonly messages: DeviceMessages;
  readonly devices: DeviceNews;
}

/**
 * Deliveries to all application services that have a URL. Of several processes
 * each delivers to its own: how far a service is, and what it is being told, stands in the database for the next.
 */
export class Deliveries {
  readonly #deps: DeliveriesDeps;
  readonly #store: DeliveryStore;
  readonly #lines = new Map<string, Line>();
  /** Lines are opened and closed one after the other. */
  readonly #changes = new KeyedQueue();
  #feed: NewsFeed | undefined;
  #prepared = false;
  #started = false;
  #isLost: ((id: string) => boolean) | undefined;
  /** Services that do not answer other processes, and when those were told last that they may again. */
  readonly #failing = new Map<string, number>();

  constructor(deps: DeliveriesDeps) {
    const { cluster, rooms } = deps;
    this.#deps = deps;
    this.#store = new DeliveryStore(rooms.parts.db, cluster.self);
    this.#listen();
    cluster.onHandover({ release: (lost) => this.#release(lost), take: () => this.#take() });
    cluster.onAnnounce(FAILING, ([id, isFailing]: readonly [string, boolean]) => {
      if (!isFailing) this.#failing.delete(id);
      else if (!this.#failing.has(id)) this.#failing.set(id, 0);
    });
    cluster.serve(ALIVE, ({ answered }: { answered: boolean }, id) => {
      this.#seenAlive(id, answered);
      return undefined;
    });
  }

  /** Reads what was outstanding when the process ended. */
  async prepare(): Promise<void> {
    await this.forgetOthers();
    this.#prepared = true;
    await this.#updateAll();
  }

  /** Services that are registered no longer begin anew if they ever come back. */
  async forgetOthers(): Promise<void> {
    const isTold = ({ registration }: Appservice) => registration.url !== undefined;
    const { told = [], untold = [] } = Object.groupBy(this.#deps.services.all, (service) =>
      isTold(service) ? 'told' : 'untold',
    );
    const idOf = ({ id }: Appservice) => id;
    await this.#store.keepOnly(told.map(idOf), untold.map(idOf));
  }

  /** A service that is new is to hear of what happens from now on, whichever process it is that tells it. */
  async begin(id: string): Promise<void> {
    await this.#store.begin(id, this.#now());
  }

  /** A service was registered, or is registered no longer or otherwise. */
  async changed(id: string): Promise<void> {
    await this.#update(id, CLOSE_WAIT_MS);
  }

  /** To be called when the server takes requests: services make some about what they are told. */
  start(): void {
    this.#started = true;
    for (const { delivery } of this.#lines.values()) delivery.start();
  }

  /**
   * A service has made a request: if it could not be reached, it is worth another try.
   *
   * @param answered to a request of ours
   */
  seenAlive({ id }: Appservice, answered = false): void {
    if (this.#lines.has(id)) this.#seenAlive(id, answered);
    const told = this.#failing.get(id);
    if (told === undefined || (!answered && Date.now() - told < TELL_AGAIN_MS)) return;
    this.#failing.set(id, Date.now());
    this.#deps.cluster.call('appservice', id, ALIVE, { answered }).catch(() => {});
  }

  async close(): Promise<void> {
    this.#prepared = false;
    await Promise.all([...this.#lines.keys()].map((id) => this.#update(id, CLOSE_WAIT_MS)));
  }

  #seenAlive(id: string, answered: boolean): void {
    const delivery = this.#lines.get(id)?.delivery;
    if (delivery?.isFailing) delivery.seenAlive(answered);
  }

  async #release(lost: (duty: Duty, key: string) => boolean): Promise<void> {
    if (!this.#prepared && this.#lines.size === 0) return;
    this.#isLost = (id) => lost('appservice', id);
    const ids = this.#deps.services.all.map(({ id }) => id).filter(this.#isLost);
    await Promise.all(ids.map((id) => this.#update(id, RELEASE_WAIT_MS)));
  }

  #take(): void {
    this.#isLost = undefined;
    void this.#updateAll();
  }

  async #updateAll(): Promise<void> {
    await Promise.all(this.#deps.services.all.map(({ id }) => this.#update(id, CLOSE_WAIT_MS)));
  }

  /** Opens or closes a line, as it is now. */
  #update(id: string, closeWaitMs: number): Promise<void> {
    return this.#changes.run(id, async () => {
      const wanted = this.#wanted(id);
      const line = this.#lines.get(id);
      if (line && line.service !== wanted) {
        this.#lines.delete(id);
        await line.delivery.close(closeWaitMs);
      }
      if (wanted && line?.service !== wanted) await this.#open(wanted);
    });
  }

  #wanted(id: string): Appservice | undefined {
    const service = this.#deps.services.get(id);
    if (!this.#prepared || service?.registration.url === undefined) return undefined;
    return this.#deps.cluster.owns('appservice', id) && this.#isLost?.(id) !== true ? service : undefined;
  }

  async #open(service: Appservice): Promise<void> {
    this.#feed ??= new NewsFeed(
      this.#deps.rooms,
      () => {
        for (const { delivery } of this.#lines.values()) delivery.wake();
      },
      () => this.#lines.size > 0,
    );
    const line = this.#line(service, this.#feed);
    this.#lines.set(service.id, line);
    try {
      await line.delivery.prepare(await this.#store.claim(service.id, this.#now()));
    } catch (err) {
      this.#lines.delete(service.id);
      if (!this.#deps.cluster.shared) throw err;
      this.#deps.log.warn({ err, appservice: service.id }, 'what a service is to be told could not be read');
      this.#openLater(service.id);
      return;
    }
    if (this.#started) line.delivery.start();
  }

  #openLater(id: string): void {
    setTimeout(() => {
      this.#update(id, CLOSE_WAIT_MS).catch((err) =>
        this.#deps.log.warn({ err, appservice: id }, 'a delivery could not be ended'),
      );
    }, RETRY_MS).unref();
  }

  #now(): Positions {
    const { rooms, streams } = this.#deps;
    return {
      events: rooms.parts.stream.current,
      toDevice: streams.toDevice.current,
      deviceLists: streams.deviceLists.current,
    };
  }

  #tellFailing(id: string, isFailing: boolean): void {
    const { cluster } = this.#deps;
    if (cluster.shared) cluster.announce(FAILING, [id, isFailing]).catch(() => {});
  }

  #line(service: Appservice, feed: NewsFeed): Line {
    const { client, rooms, memberships, streams, keyCounts, received, log } = this.#deps;
    const { db } = rooms.parts;
    const interest = new Interest(service, this.#deps);
    const ephemeral = new EphemeralNews(service, interest);
    const messages = new DeviceMessages(db, service);
    const devices = new DeviceNews(service, { db, interest, rooms, keyCounts });
    const transactions = new Transactions({
      service,
      feed,
      interest,
      rooms,
      ephemeral,
      messages,
      devices,
      positions: {
        toDevice: () => streams.toDevice.current,
        deviceLists: () => streams.deviceLists.current,
      },
    });
    const delivery = new Delivery(
      service,
      {
        client,
        store: this.#store,
        transactions,
        strippedState: (userId, roomId) => memberships.strippedState(userId, roomId),
        received,
        onFailure: () => {
          ephemeral.forgetPassing();
          this.#tellFailing(service.id, true);
        },
        onRecovery: () => this.#tellFailing(service.id, false),
        onTakenOver: () => {
          // Unless it is this process's after all.
          if (this.#lines.get(service.id)?.delivery === delivery) this.#lines.delete(service.id);
          this.#openLater(service.id);
        },
        log,
      },
      this.#now(),
    );
    return { service, delivery, ephemeral, messages, devices };
  }

  #listen(): void {
    const { streams } = this.#deps;
    streams.receipts.subscribe((_pos, receipt) => {
      for (const line of this.#ephemeral()) {
        line.ephemeral.addReceipt(receipt);
        line.delivery.wake();
      }
    });
    streams.typing.subscribe((_pos, { roomId, userIds }) => {
      for (const line of this.#ephemeral()) {
        if (line.delivery.isFailing) continue;
        line.ephemeral.setTyping(roomId, userIds);
        line.delivery.wake();
      }
    });
    streams.presence.subscribe((_pos, { userId, state }) => {
      for (const line of this.#ephemeral()) {
        // Others will have no use for what passes.
        if (line.delivery.isFailing) continue;
        line.ephemeral.setPresence(userId, state);
        line.delivery.wake();
      }
    });
    const wantsMessages = ({ service }: Line) => service.wantsEphemeral || service.registration.deviceNews;
    streams.toDevice.subscribe(
      (_pos, { userId, deviceId }) => {
        for (const line of this.#lines.values())
          if (wantsMessages(line) && line.messages.note(userId, deviceId)) line.delivery.wake();
      },
      () => this.#forget(({ messages }) => messages.forget()),
    );
    streams.deviceLists.subscribe(
      (_pos, { userId, servers, onlyFor }) => {
        if (servers !== undefined || onlyFor !== undefined) return;
        for (const line of this.#lines.values()) {
          if (!line.service.registration.deviceNews) continue;
          line.devices.note(userId);
          line.delivery.wake();
        }
      },
      () => this.#forget(({ devices }) => devices.forget()),
    );
  }

  *#ephemeral(): Generator<Line> {
    for (const line of this.#lines.values()) if (line.service.wantsEphemeral) yield line;
  }

  #forget(what: (line: Line) => void): void {
    for (const line of this.#lines.values()) {
      what(line);
      line.delivery.wake();
    }
  }
}
