import { alone } from '@trellis/cluster/cluster.ts';
import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { SigningKey } from '@trellis/protocol/signing.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { append } from '@trellis/rooms/append.ts';
import { indexStateEvents } from '@trellis/rooms/auth-chain.ts';
import { createRoom } from '@trellis/rooms/create-room.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import { Memberships } from '@trellis/rooms/memberships.ts';
import { type EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import type { Database } from '@trellis/storage/database.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { eventStreamStart } from '@trellis/storage/stream-positions.ts';
import { Stream, type Streams } from '@trellis/storage/streams.ts';
import { Discovery } from '../discovery.ts';
import { Backoff } from '../outbound/backoff.ts';
import { FederationClient } from '../outbound/client.ts';
import { DeliveryStore } from '../outbound/delivery-store.ts';
import type { DeviceUpdates } from '../outbound/device-backlog.ts';
import { OutgoingEdus } from '../outbound/edus.ts';
import { guardedConnector } from '../outbound/guarded-dispatcher.ts';
import { FederationQueues } from '../outbound/queues.ts';
import { testDispatcher } from './peers.ts';

export const HERE = 'here.test';
export const ALICE = `@alice:${HERE}`;
const key = SigningKey.generate('test');
const othersKey = SigningKey.generate('other');

/** The engine of one run of a server on a database, with its queues. */
export class SendingServer {
  readonly rooms: Rooms;
  readonly streams: Streams;
  readonly queues: FederationQueues;
  readonly store: DeliveryStore;
  readonly backoff: Backoff;
  readonly newServers: Array<[userId: string, servers: readonly string[]]> = [];
  readonly warnings: unknown[] = [];
  /** Names that it does not talk to any more, and how often it was about to. */
  readonly refused = new Set<string>();
  refusals = 0;
  readonly #client: FederationClient;
  readonly #writer: EventWriter;
  #isDead = false;

  private constructor(
    db: Database,
    parts: {
      ids: IdAllocator;
      newest: number;
      backoff: Backoff;
      devices: DeviceUpdates;
      deviceStart: number;
    },
  ) {
    const { ids, newest, backoff, devices, deviceStart } = parts;
    const own = this.#until(db);
    const snapshots = new StateSnapshots(db, ids);
    this.#writer = new EventWriter(db, snapshots, indexStateEvents);
    this.rooms = new Rooms({
      db: own,
      ids,
      events: new EventStore(db),
      snapshots,
      writer: this.#writer,
      stream: new Stream<EventChange>('events', newest),
      serverName: HERE,
      signingKey: key,
      cluster: alone(),
    });
    this.streams = {
      accountData: new Stream('accountData', 0),
      receipts: new Stream('receipts', 0),
      typing: new Stream('typing', 0),
      toDevice: new Stream('toDevice', 0),
      deviceLists: new Stream('deviceLists', deviceStart),
      presence: new Stream('presence', 0),
    };
    const memberships = new Memberships(db, this.rooms);
    this.backoff = backoff;
    this.store = new DeliveryStore(own, HERE);
    this.#client = new FederationClient({
      serverName: HERE,
      signingKey: key,
      discovery: new Discovery({ fetch: () => Promise.reject(new Error('no well-known')) }),
      connector: guardedConnector(testDispatcher()),
      backoff,
      userAgent: 'test',
      isAllowed: (name) => {
        if (!this.refused.has(name)) return true;
        this.refusals++;
        return false;
      },
    });
    const log = { warn: (details: object) => void (this.#isDead || this.warnings.push(details)) };
    this.queues = new FederationQueues({
      store: this.store,
      client: this.#client,
      rooms: this.rooms,
      memberships,
      deviceLists: this.streams.deviceLists,
      devices,
      cluster: alone(),
      isAllowed: (name) => !name.startsWith('denied'),
      log,
    });
    new OutgoingEdus({
      cluster: alone(),
      store: this.store,
      queues: this.queues,
      rooms: this.rooms,
      memberships,
      streams: this.streams,
      presence: { get: async () => undefined },
      newServers: async (userId, servers) => void this.newServers.push([userId, servers]),
      log,
    });
  }

  static async start(
    db: Database,
    devices: DeviceUpdates = noDevices,
    deviceStart = 0,
  ): Promise<SendingServer> {
    const [ids, newest] = await Promise.all([IdAllocator.create(db), eventStreamStart(db)]);
    const backoff = new Backoff(db);
    await backoff.load();
    const server = new SendingServer(db, { ids, newest, backoff, devices, deviceStart });
    await server.queues.start();
    return server;
  }

  /** As a server stops. */
  async stop(): Promise<void> {
    await this.#writer.idle();
    await this.queues.close();
    await this.#client.close();
  }

  /** As after kill -9: nothing more is written or sent. */
  async kill(): Promise<void> {
    this.#isDead = true;
    await this.#writer.idle();
    await this.#client.close();
    await this.queues.close();
  }

  /** The database, as long as the process lives. */
  #until(db: Database): Database {
    const check = () => {
      if (this.#isDead) throw new Error('killed');
    };
    const own: Pick<Database, 'query' | 'transaction'> = {
      query: async (sql, params) => {
        check();
        return db.query(sql, params);
      },
      transaction: async (work) => {
        check();
        return db.transaction(work);
      },
    };
    return own as Database;
  }

  /** A public room of alice with these members of other servers. */
  async room(...others: string[]): Promise<string> {
    const unused = {} as unknown as Membership & Aliases;
    const parts = { rooms: this.rooms, membership: unused, aliases: unused, defaultVersion: '10' };
    const roomId = await createRoom({ ...parts, profile: async () => ({}) }, ALICE, {
      preset: 'public_chat',
    });
    for (const userId of others) await this.member(roomId, userId, 'join');
    return roomId;
  }

  /** A membership event that another server's user sends. */
  member(roomId: string, userId: string, membership: string, relayFrom?: string): Promise<void> {
    return setRemoteMember(this.rooms, roomId, { userId, membership, relayFrom });
  }

  async say(roomId: string, body: unknown): Promise<void> {
    await sendEvent(this.rooms, roomId, {
      type: 'm.room.message',
      sender: ALICE,
      content: { body } as JsonObject,
    });
  }

  async kick(roomId: string, userId: string): Promise<void> {
    await sendEvent(this.rooms, roomId, {
      type: 'm.room.member',
      sender: ALICE,
      stateKey: userId,
      content: { membership: 'leave' },
    });
  }
}

/** A membership event that another server's user sends. */
export async function setRemoteMember(
  rooms: Rooms,
  roomId: string,
  change: { userId: string; membership: string; relayFrom?: string | undefined },
): Promise<void> {
  const { userId, membership, relayFrom } = change;
  const { committed } = await rooms.exclusive(roomId, async (room) => {
    const draft = {
      type: 'm.room.member',
      sender: userId,
      stateKey: userId,
      content: { membership } as JsonObject,
    };
    const event = buildEvent(
      {
        room_id: roomId,
        type: draft.type,
        sender: userId,
        state_key: userId,
        content: draft.content,
        prev_events: room.extremities,
        auth_events: authEventKeys(draft, room.version).flatMap((k) => room.state.getKey(k)?.eventId ?? []),
        depth: room.depth + 1,
        origin_server_ts: Date.now(),
      },
      { version: room.version, key: othersKey, serverName: serverNameOf(userId) },
    );
    const nid = rooms.parts.ids.next();
    const changes = new Map([[`m.room.member\0${userId}`, { eventId: event.eventId, nid }]]);
    return append(rooms, room, {
      event,
      nid,
      status: 'accepted',
      stateBefore: room.state,
      relayFrom,
      passedOnByOthers: relayFrom === undefined,
      after: {
        extremities: [event.eventId],
        state: rooms.parts.snapshots.derive(room.nid, room.state, changes),
        changes,
      },
    });
  });
  await committed;
}

const noDevices: DeviceUpdates = { edus: async () => [], changes: async () => [] };
