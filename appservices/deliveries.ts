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
  readonly #lines: Line[];

  constructor(deps: DeliveriesDeps) {
    this.#deps = deps;
    this.#store = new DeliveryStore(deps.rooms.parts.db);
    const services = deps.services.all.filter(({ registration }) => registration.url !== undefined);
    if (services.length === 0) {
      this.#lines = [];
      return;
    }
    const feed = new NewsFeed(deps.rooms, () => {
      for (const { delivery } of this.#lines) delivery.wake();
    });
    this.#lines = services.map((service) => this.#line(service, feed));
    this.#listen();
  }

  /** Reads what was outstanding when the process ended. */
  async prepare(): Promise<void> {
    await this.#store.keepOnly(this.#lines.map(({ service }) => service.id));
    for (const { service, delivery } of this.#lines)
      await delivery.prepare(await this.#store.load(service.id));
  }

  /** To be called when the server takes requests: services make some about what they are told. */
  start(): void {
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

  /** Each stream is listened to only if a service wants to hear of it. */
  #listen(): void {
    const { streams } = this.#deps;
    const ephemeral = this.#lines.filter(({ service }) => service.wantsEphemeral);
    const deviceNews = this.#lines.filter(({ service }) => service.registration.deviceNews);
    if (ephemeral.length > 0) {
      streams.receipts.subscribe((_pos, receipt) => {
        for (const line of ephemeral) {
          line.ephemeral.addReceipt(receipt);
          line.delivery.wake();
        }
      });
      streams.typing.subscribe((_pos, { roomId, userIds }) => {
        for (const line of answering(ephemeral)) {
          line.ephemeral.setTyping(roomId, userIds);
          line.delivery.wake();
        }
      });
      streams.presence.subscribe((_pos, { userId, state }) => {
        for (const line of answering(ephemeral)) {
          line.ephemeral.setPresence(userId, state);
          line.delivery.wake();
        }
      });
    }
    const messages = new Set([...ephemeral, ...deviceNews]);
    if (messages.size > 0)
      streams.toDevice.subscribe((_pos, { userId, deviceId }) => {
        for (const line of messages) if (line.messages.note(userId, deviceId)) line.delivery.wake();
      });
    if (deviceNews.length > 0)
      streams.deviceLists.subscribe((_pos, { userId, servers, onlyFor }) => {
        if (servers !== undefined || onlyFor !== undefined) return;
        for (const line of deviceNews) {
          line.devices.note(userId);
          line.delivery.wake();
        }
      });
  }
}

/** Others will have no use for what passes. */
function answering(lines: readonly Line[]): Line[] {
  return lines.filter(({ delivery }) => !delivery.isFailing);
}
