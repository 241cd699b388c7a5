import type { Cluster, Json } from '@trellis/cluster/cluster.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type {
  PresenceState,
  ReceiptChange,
  StreamGap,
  Streams,
  TypingChange,
} from '@trellis/storage/streams.ts';
import type { DeliveryStore } from './delivery-store.ts';
import type { EphemeralEdus } from './ephemeral-edus.ts';
import { membershipIn } from './recovery.ts';

export interface OutgoingEdusDeps {
  readonly cluster: Cluster;
  readonly store: Pick<DeliveryStore, 'news'>;
  /** `FederationQueues`. */
  readonly queues: {
    addEphemeral(names: Iterable<string>, add: (edus: EphemeralEdus) => void): void;
  };
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly streams: Streams;
  /** Left out when presence is off. */
  readonly presence?: { get(userId: string): Promise<PresenceState | undefined> };
  /** A local user begins to share a room with these servers, who have to hear of the devices. */
  readonly newServers: (
    userId: string,
    servers: readonly string[],
    options?: { readonly withKeys?: boolean },
  ) => Promise<void>;
  readonly log: { warn(details: object, message: string): void };
}

/** Receipts and presence are gathered for that long, and then go together. */
const GATHER = 150;
/** Local users whose presence a server gets when it comes into their room. */
const MAX_INTRODUCED = 100;

const NEWS_READ = 5_000;
const EPHEMERAL = 'federation/ephemeral';

/** What goes into `EphemeralEdus`, for other processes. */
interface News {
  readonly typing?: readonly [roomId: string, userId: string, typing: boolean];
  readonly receipts?: readonly ReceiptChange[];
  /** User id to an item of the EDU's `push`. */
  readonly presence?: ReadonlyArray<readonly [userId: string, update: JsonObject]>;
}

/**
 * Passes what local users do on to the servers that it concerns: typing, receipts, presence, and new company. Of
 * several processes the one that has the room, or the user, finds out which servers that are; each server is told by
 * the process that delivers to it.
 */
export class OutgoingEdus {
  readonly #deps: OutgoingEdusDeps;
  readonly #serverName: string;
  readonly #receipts = new Map<string, Map<string, ReceiptChange>>();
  readonly #presence = new Map<string, PresenceState>();
  #presenceTimer: NodeJS.Timeout | undefined;

  constructor(deps: OutgoingEdusDeps) {
    const { cluster, rooms, streams } = deps;
    this.#deps = deps;
    this.#serverName = rooms.parts.serverName;
    streams.typing.subscribe((_pos, change) => this.#onTyping(change));
    streams.receipts.subscribe((_pos, change) => this.#onReceipt(change));
    if (deps.presence)
      streams.presence.subscribe((_pos, change) => this.#onPresence(change.userId, change.state));
    rooms.parts.stream.subscribe(
      (_pos, change) => this.#onEvent(change),
      (gap) => this.#inBackground(() => this.#introduceMissed(gap)),
    );
    cluster.serve(EPHEMERAL, ({ names, news }: { names: readonly string[]; news: News }) => {
      this.#add(names, news);
      return undefined;
    });
  }

  #onTyping({ roomId, changed: { userId, typing } }: TypingChange): void {
    if (!this.#isLocal(userId) || !this.#deps.cluster.owns('room', roomId)) return;
    this.#inRoom(roomId, { typing: [roomId, userId, typing] });
  }

  #onReceipt(change: ReceiptChange): void {
    const { roomId, userId, type, threadId } = change;
    if (type !== 'm.read' || !this.#isLocal(userId) || !this.#deps.cluster.owns('room', roomId)) return;
    if (this.#deps.rooms.peek(roomId)?.otherServers.length === 0) return;
    let gathered = this.#receipts.get(roomId);
    if (!gathered) {
      gathered = new Map();
      this.#receipts.set(roomId, gathered);
      setTimeout(() => this.#sendReceipts(roomId), GATHER).unref();
    }
    gathered.set(`${userId} ${threadId}`, change);
  }

  #sendReceipts(roomId: string): void {
    const receipts = [...(this.#receipts.get(roomId)?.values() ?? [])];
    this.#receipts.delete(roomId);
    this.#inRoom(roomId, { receipts });
  }

  #onPresence(userId: string, state: PresenceState): void {
    if (!this.#isLocal(userId) || !this.#deps.cluster.owns('user', userId)) return;
    this.#presence.set(userId, state);
    this.#presenceTimer ??= setTimeout(() => {
      this.#presenceTimer = undefined;
      const changes = [...this.#presence];
      this.#presence.clear();
      this.#inBackground(async () => {
        for (const [userId, state] of changes)
          this.#sendPresence(userId, state, await this.#deps.memberships.serversSharingRoomWith(userId));
      });
    }, GATHER).unref();
  }

  #sendPresence(userId: string, state: PresenceState, servers: Iterable<string>): void {
    this.#send(servers, { presence: [[userId, presenceUpdate(userId, state)]] });
  }

  /** To all other servers in a room. */
  #inRoom(roomId: string, news: News): void {
    const { rooms } = this.#deps;
    const room = rooms.peek(roomId);
    if (room) this.#send(room.otherServers, news);
    else this.#inBackground(async () => this.#send((await rooms.get(roomId))?.otherServers ?? [], news));
  }

  #send(servers: Iterable<string>, news: News): void {
    const { cluster } = this.#deps;
    if (!cluster.shared) {
      this.#add(servers, news);
      return;
    }
    for (const [owner, names] of Map.groupBy(servers, (name) => cluster.owner('destination', name))) {
      if (owner === cluster.self) this.#add(names, news);
      // Worth nothing later: whoever has died in between need not be told again.
      else
        cluster
          .call('destination', names[0]!, EPHEMERAL, { names, news: news as unknown as Json })
          .catch(() => {});
    }
  }

  #add(names: Iterable<string>, { typing, receipts, presence }: News): void {
    this.#deps.queues.addEphemeral(names, (edus) => {
      if (typing) edus.typing(...typing);
      for (const receipt of receipts ?? []) edus.receipt(receipt);
      for (const [userId, update] of presence ?? []) edus.presence(userId, update);
    });
  }

  /** Those who begin to share a room get to know each other. */
  #onEvent({ roomId, servers, memberships }: EventChange): void {
    if (!servers || servers.after.length === 0 || !this.#deps.cluster.owns('room', roomId)) return;
    for (const { userId, before, after } of memberships)
      if (after === 'join' && before !== 'join' && this.#isLocal(userId))
        this.#inBackground(() => this.#introduceUser(userId, roomId, servers.after));
    if (servers.before === servers.after) return;
    const known = new Set(servers.before);
    const arrived = servers.after.filter((server) => !known.has(server));
    // When it is this server that has come into a room, its user is introduced, and knows nobody else there.
    if (arrived.length !== 1) return;
    const users = [...(this.#deps.rooms.peek(roomId)?.joinedHere ?? [])].slice(0, MAX_INTRODUCED);
    this.#inBackground(async () => {
      for (const userId of users) await this.#introducePresence(userId, arrived);
    });
  }

  /** Spec: "Device Management": servers that get no updates of the user's devices yet have to hear of them. */
  async #introduceUser(userId: string, roomId: string, servers: readonly string[]): Promise<void> {
    const { rooms, memberships, newServers } = this.#deps;
    const strangers = new Set(servers);
    for (const other of await memberships.joined(userId)) {
      if (other === roomId) continue;
      for (const server of (await rooms.get(other))?.servers.keys() ?? []) strangers.delete(server);
      if (strangers.size === 0) return;
    }
    // Which servers are there is hearsay while the members are being fetched: those are told what is needed to encrypt.
    await newServers(userId, [...strangers], { withKeys: rooms.peek(roomId)?.partial !== undefined });
    await this.#introducePresence(userId, strangers);
  }

  async #introducePresence(userId: string, servers: Iterable<string>): Promise<void> {
    const state = await this.#deps.presence?.get(userId);
    if (state) this.#sendPresence(userId, state, servers);
  }

  /** Who joined while nobody was told of it. */
  async #introduceMissed({ from, to }: StreamGap): Promise<void> {
    const { store, rooms, cluster } = this.#deps;
    for (let after = from; ; ) {
      const page = await store.news(after, to, NEWS_READ);
      for (const { roomId, stateKey, json, replacedJson } of page) {
        const joins = membershipIn(json) === 'join' && membershipIn(replacedJson) !== 'join';
        if (!joins || stateKey === null || !this.#isLocal(stateKey) || !cluster.owns('room', roomId))
          continue;
        const servers = (await rooms.get(roomId))?.otherServers ?? [];
        if (servers.length > 0) await this.#introduceUser(stateKey, roomId, servers);
      }
      if (page.length < NEWS_READ) return;
      after = page.at(-1)!.pos;
    }
  }

  #isLocal(userId: string): boolean {
    return serverNameOf(userId) === this.#serverName;
  }

  #inBackground(task: () => Promise<void>): void {
    task().catch((err: unknown) => this.#deps.log.warn({ err }, 'EDUs could not be made'));
  }
}

/** An item of `push` in `m.presence`. */
function presenceUpdate(userId: string, state: PresenceState): JsonObject {
  const { presence, statusMsg, lastActiveTs, currentlyActive } = state;
  return {
    user_id: userId,
    presence,
    last_active_ago: lastActiveTs > 0 ? Math.max(0, Date.now() - lastActiveTs) : 0,
    currently_active: currentlyActive,
    ...(statusMsg === null ? {} : { status_msg: statusMsg }),
  };
}
