import { randomBytes } from 'node:crypto';
import { alone } from '@trellis/cluster/cluster.ts';
import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { type JsonObject, type Pdu, type RoomEvent, stateKeyOf } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { buildEvent, signedText, signingServers } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey, signatureOf, verifyKey, verifySignatureAsync } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { Aliases } from '../aliases.ts';
import { indexStateEvents } from '../auth-chain.ts';
import { type CreateRoomRequest, createRoom } from '../create-room.ts';
import { ErasedUsers } from '../erased-users.ts';
import type { EventVerifier } from '../incoming-event.ts';
import { Membership, type RemoteMembership } from '../membership.ts';
import { Memberships } from '../memberships.ts';
import type { RoomPolicies } from '../policy-servers.ts';
import { type EventChange, Rooms } from '../rooms.ts';

const keys = new Map<string, SigningKey>();

/** The one key of a server of the tests. */
export function keyOf(server: string): SigningKey {
  const key = keys.get(server) ?? SigningKey.generate('test');
  keys.set(server, key);
  return key;
}

/** Knows the keys of all servers of the tests, of no others. */
export const testVerifier: EventVerifier = {
  async verifyEventSignatures(events) {
    const results = new Map<string, Error | undefined>();
    for (const event of events) results.set(event.eventId, await verify(event));
    return results;
  },
};

async function verify(event: RoomEvent): Promise<Error | undefined> {
  const text = signedText(event);
  for (const server of signingServers(event)) {
    const key = keys.get(server);
    const signature = key && signatureOf(event.pdu, server, key.keyId);
    const isRight =
      signature !== undefined &&
      (await verifySignatureAsync(verifyKey(key!.publicKeyBase64)!, text, signature));
    if (!isRight) return new Error(`${server} has not signed ${event.eventId}`);
  }
  return undefined;
}

/** The engine of a server, with a database of its own. */
export interface TestEngine {
  readonly serverName: string;
  readonly db: Database;
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly aliases: Aliases;
  /** What the stream of events has announced. */
  readonly changes: EventChange[];
  membership(remote?: RemoteMembership): Membership;
  createRoom(creator: string, request?: CreateRoomRequest, remote?: RemoteMembership): Promise<string>;
  close(): Promise<void>;
}

export async function testEngine(
  serverName: string,
  more: { readonly policies?: RoomPolicies; readonly maxLiveMembers?: number } = {},
): Promise<TestEngine> {
  const { db, close } = await testDatabase();
  const ids = await IdAllocator.create(db);
  const snapshots = new StateSnapshots(db, ids);
  const writer = new EventWriter(db, snapshots, indexStateEvents);
  const stream = new Stream<EventChange>('events', 0);
  const rooms = new Rooms({
    db,
    ids,
    events: new EventStore(db),
    snapshots,
    writer,
    stream,
    serverName,
    cluster: alone(),
    signingKey: keyOf(serverName),
    erased: new ErasedUsers(db, serverName),
    ...more,
  });
  const memberships = new Memberships(db, rooms);
  const aliases = new Aliases(db, rooms, async () => undefined);
  const changes: EventChange[] = [];
  stream.subscribe((_pos, change) => changes.push(change));
  const profile = async () => ({});
  const membership = (remote: RemoteMembership = noRemote) =>
    new Membership({ rooms, memberships, remote, profile });
  return {
    serverName,
    db,
    rooms,
    memberships,
    aliases,
    changes,
    membership,
    createRoom: (creator, request = { preset: 'public_chat' }, remote) =>
      createRoom(
        {
          rooms,
          membership: membership(remote),
          aliases,
          profile,
          defaultVersion: '12',
        },
        creator,
        request,
      ),
    async close() {
      await writer.idle();
      await close();
    },
  };
}

const unexpected = async (): Promise<never> => {
  throw new Error('no other server was to be asked');
};
const noRemote: RemoteMembership = {
  join: unexpected,
  leave: unexpected,
  knock: unexpected,
  invite: unexpected,
};

/** A room of other servers, event by event; it authorises nothing, so that a test can have it lie. */
export class ForeignRoom {
  readonly version;
  readonly roomId: string;
  readonly state = new Map<string, RoomEvent>();
  readonly chain: RoomEvent[] = [];
  #last: RoomEvent | undefined;

  constructor(creator: string, versionId = '10') {
    this.version = roomVersion(versionId)!;
    const legacyId = `!${randomBytes(6).toString('hex')}:${serverNameOf(creator)}`;
    this.roomId = this.version.roomIdIsCreateHash ? '' : legacyId;
    // Two rooms of one millisecond would have the same create event.
    const content = {
      room_version: versionId,
      nonce: randomBytes(6).toString('hex'),
      ...(this.version.implicitCreator ? {} : { creator }),
    };
    const create = this.add(creator, 'm.room.create', '', content);
    this.roomId = create.roomId;
    this.add(creator, 'm.room.member', creator, { membership: 'join' });
    const users = this.version.privilegedCreators ? {} : { [creator]: 100 };
    this.add(creator, 'm.room.power_levels', '', { users });
    this.add(creator, 'm.room.join_rules', '', { join_rule: 'public' });
  }

  /** Adds a state event after the last one. */
  add(sender: string, type: string, stateKey: string, content: JsonObject): RoomEvent {
    const event = this.build(sender, type, stateKey, content);
    this.keep(event);
    return event;
  }

  /** Builds an event without adding it. */
  build(sender: string, type: string, stateKey: string, content: JsonObject): RoomEvent {
    const server = serverNameOf(sender);
    const isCreate = type === 'm.room.create';
    const keys = authEventKeys({ type, sender, stateKey, content }, this.version);
    const auth = keys.flatMap((key) => this.state.get(key)?.eventId ?? []);
    return buildEvent(
      {
        ...(isCreate && this.version.roomIdIsCreateHash ? {} : { room_id: this.roomId }),
        sender,
        type,
        state_key: stateKey,
        content,
        prev_events: this.#last ? [this.#last.eventId] : [],
        auth_events: auth,
        depth: (this.#last?.depth ?? 0) + 1,
        origin_server_ts: Date.now(),
      },
      { version: this.version, key: keyOf(server), serverName: server },
    );
  }

  keep(event: RoomEvent): void {
    this.state.set(stateKeyOf(event.type, event.stateKey!), event);
    this.chain.push(event);
    this.#last = event;
  }

  get statePdus(): Pdu[] {
    return [...this.state.values()].map(({ pdu }) => pdu);
  }

  /** Everything that ever was state. */
  get chainPdus(): Pdu[] {
    return this.chain.map(({ pdu }) => pdu);
  }
}
