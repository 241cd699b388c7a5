import type { Cluster } from '@trellis/cluster/cluster.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Notifier, Positions } from '@trellis/rooms/notifier.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { ReceiptChange, Stream } from '@trellis/storage/streams.ts';
import type { AccountData } from '@trellis/users/account-data.ts';

/** The type of the receipts, and of the account data by which a user turns theirs on or off. */
export const RECEIVED = 'org.trellis.received';
export const RECEIVED_SETTING = 'org.trellis.received_receipts';

export interface ReceivedReceiptsDeps {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly notifier: Notifier;
  readonly accountData: AccountData;
  readonly stream: Stream<ReceiptChange>;
  /** Where there may be other processes: all are told, as a sender may sync anywhere. */
  readonly cluster?: Cluster | undefined;
  /** For users who have not said whether they want it. */
  readonly byDefault: boolean;
  /** How long confirmations are collected before senders hear of them. */
  readonly delayMs?: number;
}

const DELAY_MS = 1_000;
const MAX_USERS = 50_000;
/** In larger rooms nobody is told: with each message as many receipts would come back. */
const MAX_MEMBERS = 100;
/** Rooms and events of each that one confirmation is looked at for. */
const MAX_ROOMS = 50;
const MAX_EVENTS = 50;
/** Receipts that wait for a sender; the oldest make room. */
const MAX_RECEIPTS = 200;

interface Receipt {
  readonly pos: number;
  readonly roomId: string;
  readonly eventId: string;
  readonly userId: string;
  readonly ts: number;
}

interface Told {
  readonly sender: string;
  readonly receipt: Receipt;
}

interface Wake {
  readonly sender: string;
  readonly pos: number;
  readonly roomId: string;
}

interface Confirmed {
  /** Senders were told up to here. */
  told: number;
  to: number;
}

/**
 * Tells the senders of messages that these have reached a device of another user, which shows by the token of its
 * next sync (docs/received-receipts.md). Local senders alone hear of it, each of the newest event of theirs. Lives in
 * memory: who is told late or not at all has lost nothing but a tick.
 */
export class ReceivedReceipts {
  readonly #deps: ReceivedReceiptsDeps;
  /** Whether a user gives such receipts, as far as it was looked up. */
  readonly #settings = new RecentlyUsed<string, boolean>(MAX_USERS);
  readonly #confirmed = new RecentlyUsed<string, Confirmed>(MAX_USERS);
  readonly #waiting = new Set<string>();
  /** By sender, oldest first. */
  readonly #receipts = new RecentlyUsed<string, Receipt[]>(MAX_USERS);
  #timer: NodeJS.Timeout | undefined;

  constructor(deps: ReceivedReceiptsDeps) {
    this.#deps = deps;
    const { cluster, notifier } = deps;
    cluster?.onAnnounce('received', ({ sender, receipt }: Told) => this.#keep(sender, receipt));
    cluster?.onAnnounce('received-wake', ({ sender, pos, roomId }: Wake) =>
      notifier.tell(sender, { stream: 'receipts', pos, roomId }),
    );
    cluster?.onGap(() => this.#settings.clear());
  }

  /** To be called when the user's account data of type `RECEIVED_SETTING` changes. */
  settingChanged(userId: string): void {
    this.#settings.delete(userId);
  }

  /** A device of the user has everything up to this position of the stream of events. */
  confirmed(userId: string, pos: number): void {
    const wanted = this.#settings.get(userId);
    if (wanted === false) return;
    if (wanted === undefined) return void this.#lookUp(userId).catch(() => {});
    const known = this.#confirmed.get(userId);
    if (!known) return void this.#confirmed.set(userId, { told: pos, to: pos });
    if (pos <= known.to) return;
    known.to = pos;
    this.#waiting.add(userId);
    this.#timer ??= setTimeout(() => this.flush().catch(() => {}), this.#deps.delayMs ?? DELAY_MS).unref();
  }

  /** The content of an `m.receipt` event with what a sender is told of a room in (from, to]. */
  contentFor(roomId: string, sender: string, from: number | undefined, to: number): object | undefined {
    if (from === undefined || this.#receipts.size === 0) return undefined;
    const receipts = this.#receipts.get(sender);
    const content: Record<string, { [RECEIVED]: Record<string, { ts: number }> }> = {};
    for (const { pos, roomId: room, eventId, userId, ts } of receipts ?? []) {
      if (pos <= from || pos > to || room !== roomId) continue;
      content[eventId] ??= { [RECEIVED]: {} };
      content[eventId][RECEIVED][userId] = { ts };
    }
    return Object.keys(content).length === 0 ? undefined : content;
  }

  /** Tells the senders of what was confirmed since. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const users = [...this.#waiting];
    this.#waiting.clear();
    for (const userId of users) {
      const confirmed = this.#confirmed.get(userId);
      if (!confirmed || confirmed.to <= confirmed.told) continue;
      const { told, to } = confirmed;
      confirmed.told = to;
      await this.#tell(userId, told, to);
    }
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  async #lookUp(userId: string): Promise<void> {
    const { accountData, byDefault } = this.#deps;
    const enabled = (await accountData.get(userId, null, RECEIVED_SETTING))?.enabled;
    this.#settings.set(userId, typeof enabled === 'boolean' ? enabled : byDefault);
  }

  async #tell(userId: string, from: number, to: number): Promise<void> {
    const { rooms, memberships, notifier, accountData } = this.#deps;
    const ignored = await accountData.ignoredUsers(userId);
    for (const roomId of roomsWithEvents(notifier, userId, from, to)) {
      const room = rooms.peek(roomId);
      if (!room || room.count('join') > MAX_MEMBERS || !room.isJoined(userId)) continue;
      const joinedAt = (await memberships.of(userId)).get(roomId)?.pos ?? to;
      for (const [sender, eventId] of this.#newestBySender(room, Math.max(from, joinedAt), to))
        if (sender !== userId && !ignored.has(sender)) await this.#add(sender, { roomId, eventId, userId });
    }
  }

  #newestBySender(room: Room, from: number, to: number): Map<string, string> {
    const { serverName } = this.#deps.rooms.parts;
    const newest = new Map<string, string>();
    for (const { sender, eventId } of room.timeline.between(from, to, MAX_EVENTS)?.events ?? [])
      if (serverNameOf(sender) === serverName) newest.set(sender, eventId);
    return newest;
  }

  async #add(sender: string, receipt: Omit<Receipt, 'pos' | 'ts'>): Promise<void> {
    const { stream, notifier, cluster } = this.#deps;
    const pos = await stream.reserve();
    const placed: Receipt = { ...receipt, pos, ts: Date.now() };
    if (cluster?.shared) {
      // Before the position is reached anywhere, so that nobody looks there in vain.
      await cluster
        .announce('received', { sender, receipt: { ...placed } })
        .finally(() => stream.complete(pos, []));
      return cluster.announce('received-wake', { sender, pos, roomId: receipt.roomId });
    }
    this.#keep(sender, placed);
    // Nobody else is to hear of it, so that it is not announced.
    await stream.complete(pos, []);
    notifier.tell(sender, { stream: 'receipts', pos, roomId: receipt.roomId });
  }

  #keep(sender: string, receipt: Receipt): void {
    const receipts = this.#receipts.get(sender) ?? [];
    receipts.push(receipt);
    if (receipts.length > MAX_RECEIPTS) receipts.shift();
    this.#receipts.set(sender, receipts);
  }
}

function roomsWithEvents(notifier: Notifier, userId: string, from: number, to: number): string[] {
  const nothing = Number.POSITIVE_INFINITY;
  const interval = (events: number): Positions => ({
    events,
    accountData: nothing,
    receipts: nothing,
    typing: nothing,
    toDevice: nothing,
    deviceLists: nothing,
    presence: nothing,
  });
  const rooms = new Set<string>();
  for (const { roomId } of notifier.feed(userId).between(interval(from), interval(to)))
    if (roomId !== null) rooms.add(roomId);
  return [...rooms].slice(-MAX_ROOMS);
}
