import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { PresenceState, ReceiptChange, Streams, TypingChange } from '@trellis/storage/streams.ts';
import type { EphemeralEdus } from './ephemeral-edus.ts';

export interface OutgoingEdusDeps {
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

/** Passes what local users do on to the servers that it concerns: typing, receipts, presence, and new company. */
export class OutgoingEdus {
  readonly #deps: OutgoingEdusDeps;
  readonly #serverName: string;
  readonly #receipts = new Map<string, Map<string, ReceiptChange>>();
  readonly #presence = new Map<string, PresenceState>();
  #presenceTimer: NodeJS.Timeout | undefined;

  constructor(deps: OutgoingEdusDeps) {
    const { rooms, streams } = deps;
    this.#deps = deps;
    this.#serverName = rooms.parts.serverName;
    streams.typing.subscribe((_pos, change) => this.#onTyping(change));
    streams.receipts.subscribe((_pos, change) => this.#onReceipt(change));
    if (deps.presence)
      streams.presence.subscribe((_pos, change) => this.#onPresence(change.userId, change.state));
    rooms.parts.stream.subscribe((_pos, change) => this.#onEvent(change));
  }

  #onTyping({ roomId, changed: { userId, typing } }: TypingChange): void {
    if (!this.#isLocal(userId)) return;
    this.#deps.queues.addEphemeral(this.#serversIn(roomId), (edus) => edus.typing(roomId, userId, typing));
  }

  #onReceipt(change: ReceiptChange): void {
    const { roomId, userId, type, threadId } = change;
    if (type !== 'm.read' || !this.#isLocal(userId) || this.#serversIn(roomId).length === 0) return;
    let gathered = this.#receipts.get(roomId);
    if (!gathered) {
      gathered = new Map();
      this.#receipts.set(roomId, gathered);
      setTimeout(() => this.#sendReceipts(roomId), GATHER).unref();
    }
    gathered.set(`${userId} ${threadId}`, change);
  }

  #sendReceipts(roomId: string): void {
    const receipts = this.#receipts.get(roomId) ?? new Map<string, ReceiptChange>();
    this.#receipts.delete(roomId);
    this.#deps.queues.addEphemeral(this.#serversIn(roomId), (edus) => {
      for (const receipt of receipts.values()) edus.receipt(receipt);
    });
  }

  #onPresence(userId: string, state: PresenceState): void {
    if (!this.#isLocal(userId)) return;
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
    const update = presenceUpdate(userId, state);
    this.#deps.queues.addEphemeral(servers, (edus) => edus.presence(userId, update));
  }

  /** Those who begin to share a room get to know each other. */
  #onEvent({ roomId, servers, memberships }: EventChange): void {
    if (!servers || servers.after.length === 0) return;
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

  #serversIn(roomId: string): readonly string[] {
    return this.#deps.rooms.peek(roomId)?.otherServers ?? [];
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
