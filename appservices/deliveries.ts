import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Streams } from '@trellis/storage/streams.ts';
import type { AppserviceClient } from './client.ts';
import { Delivery, type DeliveryParts } from './delivery.ts';
import { DeliveryStore } from './delivery-store.ts';
import { DeviceMessages } from './device-messages.ts';
import { DeviceNews, type KeyCounts } from './device-news.ts';
import { EphemeralNews } from './ephemeral-news.ts';
import { Interest } from './interest.ts';
import { NewsFeed } from './news-feed.ts';
import type { Appservice, Appservices } from './registry.ts';
import type { RoomAliases } from './room-aliases.ts';
import { Transactions } from './transactions.ts';

export interface DeliveriesDeps {
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

/** One service, and what waits for it. */
interface Line {
  readonly service: Appservice;
  readonly delivery: Delivery;
  readonly ephemeral: EphemeralNews;
  readonly messages: DeviceMessages;
  readonly devices: DeviceNews;
}

/** Deliveries to all application services that have a URL; without any, nothing is listened to. */
export class Deliveries {
  readonly #deps: DeliveriesDeps;
  readonly #store: DeliveryStore;
  #lines: Line[] = [];
  #feed: NewsFeed | undefined;
  #started = false;

  constructor(deps: DeliveriesDeps) {
    this.#deps = deps;
    this.#store = new DeliveryStore(deps.rooms.parts.db);
    for (const service of deps.services.all) this.#open(service);
  }

  /** Reads what was outstanding when the process ended. */
  async prepare(): Promise<void> {
    // Those registered since this was made.
    for (const service of this.#deps.services.all)
      if (!this.#lines.some((line) => line.service === service)) this.#open(service);
    await this.forgetOthers();
    for (const { service, delivery } of this.#lines)
      await delivery.prepare(await this.#store.load(service.id));
  }

  /** Services that are registered no longer begin anew if they ever come back. */
  async forgetOthers(): Promise<void> {
    await this.#store.keepOnly(this.#lines.map(({ service }) => service.id));
  }

  /** A service that was registered while the server runs. */
  async add(service: Appservice): Promise<void> {
    const line = this.#open(service);
    await line?.delivery.prepare(await this.#store.load(service.id));
    if (this.#started) line?.delivery.start();
  }

  async remove(id: string): Promise<void> {
    const line = this.#lines.find(({ service }) => service.id === id);
    this.#lines = this.#lines.filter((other) => other !== line);
    await line?.delivery.close(CLOSE_WAIT_MS);
  }

  /** To be called when the server takes requests: services make some about what they are told. */
  start(): void {
    this.#started = true;
    for (const { delivery } of this.#lines) delivery.start();
  }

  /**
   * A service has made a request: if it could not be reached, it is worth another try.
   *
   * @param answered to a request of ours
   */
  seenAlive(service: Appservice, answered = false): void {
    for (const line of this.#lines)
      if (line.service === service && line.delivery.isFailing) line.delivery.seenAlive(answered);
  }

  async close(): Promise<void> {
    await Promise.all(this.#lines.map(({ delivery }) => delivery.close(CLOSE_WAIT_MS)));
  }

  #open(service: Appservice): Line | undefined {
    if (service.registration.url === undefined) return undefined;
    if (!this.#feed) this.#listen();
    this.#feed ??= new NewsFeed(this.#deps.rooms, () => {
      for (const { delivery } of this.#lines) delivery.wake();
    });
    const line = this.#line(service, this.#feed);
    this.#lines.push(line);
    return line;
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
        onFailure: () => ephemeral.forgetPassing(),
        log,
      },
      {
        events: feed.current,
        toDevice: streams.toDevice.current,
        deviceLists: streams.deviceLists.current,
      },
    );
    return { service, delivery, ephemeral, messages, devices };
  }

  #listen(): void {
    const { streams } = this.#deps;
    streams.receipts.subscribe((_pos, receipt) => {
      for (const line of this.#lines.filter(wantsEphemeral)) {
        line.ephemeral.addReceipt(receipt);
        line.delivery.wake();
      }
    });
    streams.typing.subscribe((_pos, { roomId, userIds }) => {
      for (const line of answering(this.#lines.filter(wantsEphemeral))) {
        line.ephemeral.setTyping(roomId, userIds);
        line.delivery.wake();
      }
    });
    streams.presence.subscribe((_pos, { userId, state }) => {
      for (const line of answering(this.#lines.filter(wantsEphemeral))) {
        line.ephemeral.setPresence(userId, state);
        line.delivery.wake();
      }
    });
    streams.toDevice.subscribe((_pos, { userId, deviceId }) => {
      for (const line of this.#lines)
        if (wantsEphemeral(line) || wantsDeviceNews(line))
          if (line.messages.note(userId, deviceId)) line.delivery.wake();
    });
    streams.deviceLists.subscribe((_pos, { userId, servers, onlyFor }) => {
      if (servers !== undefined || onlyFor !== undefined) return;
      for (const line of this.#lines.filter(wantsDeviceNews)) {
        line.devices.note(userId);
        line.delivery.wake();
      }
    });
  }
}

function wantsEphemeral({ service }: Line): boolean {
  return service.wantsEphemeral;
}

function wantsDeviceNews({ service }: Line): boolean {
  return service.registration.deviceNews;
}

/** Others will have no use for what passes. */
function answering(lines: readonly Line[]): Line[] {
  return lines.filter(({ delivery }) => !delivery.isFailing);
}
