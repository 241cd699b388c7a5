import { randomBytes } from 'node:crypto';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Positions, StoredTransaction } from './delivery-store.ts';
import type { DeviceMessage, DeviceMessages } from './device-messages.ts';
import type { DeviceNews, KeysLeft } from './device-news.ts';
import type { EphemeralNews } from './ephemeral-news.ts';
import type { Interest } from './interest.ts';
import type { NewsFeed } from './news-feed.ts';
import type { Appservice } from './registry.ts';

/** Everything in a transaction besides events, by its names. */
type More = Record<string, unknown>;

export interface Transaction {
  readonly id: string;
  readonly events: readonly StoredEvent[];
  readonly more: More;
  /** Send-to-device messages in it. */
  readonly messages: readonly DeviceMessage[];
  /** What is delivered once it is. */
  readonly positions: Positions;
  /** To be called once it is delivered. */
  readonly delivered: () => void;
}

export interface TransactionParts {
  readonly service: Appservice;
  readonly feed: NewsFeed;
  readonly interest: Interest;
  readonly rooms: Rooms;
  readonly ephemeral: EphemeralNews;
  readonly messages: DeviceMessages;
  readonly devices: DeviceNews;
  readonly positions: { readonly toDevice: () => number; readonly deviceLists: () => number };
}

const MAX_EVENTS = 100;
/** Characters of JSON after which a transaction takes no further event. */
const MAX_SIZE = 1_000_000;
/** Events looked at for each one that may go into a transaction. */
const READ_AHEAD = 500;
const MESSAGES = 'de.sorunome.msc2409.to_device';

/** Puts together what a service is to be told next. */
export class Transactions {
  readonly #parts: TransactionParts;

  constructor(parts: TransactionParts) {
    this.#parts = parts;
  }

  /** What follows on these positions; without anything to tell there are only the positions that it has got to. */
  async next(from: Positions): Promise<Transaction | Positions> {
    const { service, ephemeral } = this.#parts;
    const { events, upTo } = await this.#events(from.events);
    const more: More = {};
    const passing = service.wantsEphemeral ? await ephemeral.take() : [];
    if (passing.length > 0) {
      if (service.registration.receiveEphemeral) more.ephemeral = passing;
      if (service.registration.pushEphemeral) more['de.sorunome.msc2409.ephemeral'] = passing;
    }
    const { messages, upTo: toDevice } = await this.#messages(from.toDevice);
    if (messages.length > 0) more[MESSAGES] = messages;
    const deviceLists = await this.#deviceLists(from.deviceLists, events, more);
    const positions = { events: upTo, toDevice, deviceLists };
    if (events.length === 0 && Object.keys(more).length === 0) return positions;
    const delivered = await this.#keysLeft(more);
    return { id: randomBytes(12).toString('base64url'), events, more, messages, positions, delivered };
  }

  /** The transaction that was under way when the server stopped. */
  async restore(stored: StoredTransaction, positions: Positions): Promise<Transaction> {
    const found = await this.#parts.rooms.parts.events.byNids(stored.eventNids);
    const byNid = new Map(found.map((event) => [event.nid, event]));
    const more = decodeJson(stored.more) as More;
    return {
      id: stored.id,
      events: stored.eventNids.flatMap((nid) => byNid.get(nid) ?? []),
      more,
      messages: (more[MESSAGES] as DeviceMessage[] | undefined) ?? [],
      positions,
      delivered: () => {},
    };
  }

  async #events(after: number): Promise<{ events: StoredEvent[]; upTo: number }> {
    const { feed, interest } = this.#parts;
    const past = interest.past();
    const events: StoredEvent[] = [];
    let size = 0;
    let pos = after;
    for (;;) {
      const { news, upTo } = await feed.read(pos, READ_AHEAD);
      for (const item of news) {
        if (await interest.includes(item, past)) {
          events.push(item.event);
          size += item.event.json.length;
        }
        if (events.length === MAX_EVENTS || size >= MAX_SIZE) return { events, upTo: item.pos };
      }
      pos = upTo;
      if (pos >= feed.current) return { events, upTo: pos };
    }
  }

  async #messages(from: number) {
    const { service, messages, positions } = this.#parts;
    const to = positions.toDevice();
    if (!service.wantsEphemeral && !service.registration.deviceNews) return { messages: [], upTo: to };
    return messages.after(from, to);
  }

  /** @returns the position up to which changes of device lists are told */
  async #deviceLists(from: number, events: readonly StoredEvent[], more: More): Promise<number> {
    const { service, devices, positions } = this.#parts;
    const to = positions.deviceLists();
    if (!service.registration.deviceNews) return to;
    const { users, upTo } = await devices.changed(from, to);
    const lists = { changed: new Set(users), left: new Set<string>() };
    await devices.addMembers(events, lists);
    if (lists.changed.size + lists.left.size > 0)
      more['org.matrix.msc3202.device_lists'] = { changed: [...lists.changed], left: [...lists.left] };
    return upTo;
  }

  async #keysLeft(more: More): Promise<() => void> {
    const { service, devices } = this.#parts;
    if (!service.registration.deviceNews) return () => {};
    const { keys, told } = await devices.keysLeft();
    if (keys) Object.assign(more, keyMembers(keys));
    return told;
  }
}

/** The counts have two names: one in the MSC, and one that it had before, which some libraries look for. */
function keyMembers({ oneTimeKeys, unusedFallbackTypes }: KeysLeft): More {
  return {
    'org.matrix.msc3202.device_one_time_keys_count': oneTimeKeys,
    'org.matrix.msc3202.device_one_time_key_counts': oneTimeKeys,
    'org.matrix.msc3202.device_unused_fallback_key_types': unusedFallbackTypes,
  };
}
