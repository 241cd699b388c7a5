import type { Pdu } from '@trellis/protocol/event.ts';
import { viewOf } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import type { EventRef } from '@trellis/storage/state-snapshots.ts';
import { type EventStatus, type ReplacedState, StoredEvent } from '@trellis/storage/stored-event.ts';
import type { ChangeCodec } from '@trellis/storage/streams.ts';
import type { Member } from './room.ts';
import type { EventChange, Resynced, RoomMove } from './rooms.ts';

/** An event with its place, as JSON. */
interface EventJson {
  id: string;
  v: string;
  nid: number;
  pos?: number | undefined;
  status: EventStatus;
  before?: number | undefined;
  roomBefore?: number | undefined;
  backfilled?: true | undefined;
  replaces?: ReplacedState | undefined;
  txn?: readonly [deviceId: string, txnId: string] | undefined;
  redactedBy?: EventJson | undefined;
  related?: boolean | undefined;
  pdu: Pdu;
}

interface MoveJson {
  before: number;
  after: number;
  ends: readonly string[];
  depth: number;
  /** Keys, ids and nids of the state's changes; no nid where the key is gone. */
  state?: ReadonlyArray<readonly [key: string, eventId: string, nid: number] | readonly [key: string]>;
  members?: ReadonlyArray<readonly [userId: string, member: Member | null]>;
  jump?: true | undefined;
  cut?: true | undefined;
  redacted?: string | undefined;
}

interface ChangeJson {
  room: string;
  event: EventJson;
  outOfBand?: true | undefined;
  relayFrom?: string | undefined;
  byOthers?: true | undefined;
  /** One list where both are the same. */
  servers?: readonly [before: readonly string[], after?: readonly string[]] | undefined;
  resynced?: Resynced | undefined;
  memberships: EventChange['memberships'];
  move?: MoveJson | undefined;
}

/** What other processes are told of an event that one of them has appended. */
export const eventChangeCodec: ChangeCodec<EventChange> = {
  encode: ({ servers, move, ...change }): ChangeJson => ({
    room: change.roomId,
    event: encodeEvent(change.event),
    outOfBand: change.outOfBand || undefined,
    relayFrom: change.relayFrom,
    byOthers: change.passedOnByOthers || undefined,
    servers:
      servers && (servers.before === servers.after ? [servers.before] : [servers.before, servers.after]),
    resynced: change.resynced,
    memberships: change.memberships,
    move: move && encodeMove(move),
  }),
  // Other servers are to hear of it from the process that has their queue.
  isUrgent: ({ servers }) => servers !== undefined && servers.before.length + servers.after.length > 0,
  decode(json): EventChange {
    const { room, event, servers, memberships, ...rest } = json as ChangeJson;
    return {
      roomId: room,
      event: decodeEvent(event),
      outOfBand: rest.outOfBand === true,
      relayFrom: rest.relayFrom,
      passedOnByOthers: rest.byOthers,
      ...(servers && { servers: { before: servers[0], after: servers[1] ?? servers[0] } }),
      resynced: rest.resynced,
      memberships: memberships.map(({ userId, before, after }) => ({ userId, before, after })),
      move: rest.move && decodeMove(rest.move),
      isFromElsewhere: true,
    };
  },
};

function encodeEvent(event: StoredEvent): EventJson {
  const { stateBefore, roomStateBefore, transaction, redactedBy } = event;
  return {
    id: event.eventId,
    v: event.version.id,
    nid: event.nid,
    pos: event.pos,
    status: event.status,
    before: stateBefore,
    roomBefore: roomStateBefore === stateBefore ? undefined : roomStateBefore,
    backfilled: event.backfilled || undefined,
    replaces: event.replaces,
    txn: transaction && [transaction.deviceId, transaction.txnId],
    redactedBy: redactedBy && encodeEvent(redactedBy),
    related: event.hasRelations,
    pdu: event.pdu,
  };
}

function decodeEvent(json: EventJson): StoredEvent {
  const version = roomVersion(json.v);
  if (!version) throw new Error(`the event ${json.id} has the unknown version ${json.v}`);
  const event = new StoredEvent(
    viewOf(json.pdu, json.id, version),
    {
      nid: json.nid,
      pos: json.pos,
      status: json.status,
      stateBefore: json.before,
      roomStateBefore: json.roomBefore,
      backfilled: json.backfilled ?? false,
    },
    {
      ...(json.replaces && { replaces: json.replaces }),
      ...(json.txn && { transaction: { deviceId: json.txn[0], txnId: json.txn[1] } }),
      ...(json.redactedBy && { redactedBy: decodeEvent(json.redactedBy) }),
    },
  );
  event.hasRelations = json.related;
  return event;
}

function encodeMove(move: RoomMove): MoveJson {
  const state = [...move.changes].map(([key, ref]) =>
    ref ? ([key, ref.eventId, ref.nid] as const) : ([key] as const),
  );
  return {
    before: move.stateBefore,
    after: move.stateAfter,
    ends: move.extremities,
    depth: move.depth,
    ...(state.length > 0 && { state }),
    ...(move.members.length > 0 && {
      members: move.members.map(([userId, member]) => [userId, member ?? null] as const),
    }),
    jump: move.isJump || undefined,
    cut: move.isCut || undefined,
    redacted: move.redacted,
  };
}

function decodeMove(json: MoveJson): RoomMove {
  const changes = new Map<string, EventRef | undefined>();
  for (const [key, eventId, nid] of json.state ?? [])
    changes.set(key, eventId === undefined || nid === undefined ? undefined : { eventId, nid });
  return {
    stateBefore: json.before,
    stateAfter: json.after,
    changes,
    extremities: json.ends,
    depth: json.depth,
    members: (json.members ?? []).map(([userId, member]) => [userId, member ?? undefined]),
    isJump: json.jump === true,
    isCut: json.cut === true,
    redacted: json.redacted,
  };
}
