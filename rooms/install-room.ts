import { authorise, authoriseByAuthEvents } from '@trellis/protocol/auth-rules/index.ts';
import { forbidden } from '@trellis/protocol/errors.ts';
import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { storePartialRoom } from '@trellis/storage/partial-rooms.ts';
import type { EventRef, StateDelta } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { type Appended, append } from './append.ts';
import { type EventVerifier, readPdus, verifyIncoming } from './incoming-event.ts';
import { CHUNK, type Judged, judgeOutliers, numberOutliers, storeOutliers } from './outliers.ts';
import type { PartialState } from './partial-state/partial-rooms.ts';
import { withToldMembers } from './partial-state/told-state.ts';
import { badAnswer } from './remote-handshakes.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { roomOfVersion } from './unjoined-room.ts';

/** Joins in a row, each after a leave, that are looked at when the members come. */
const MAX_JOINS = 20;

/** A room as the server that let us in gave it. */
export interface RoomAnswer {
  readonly server: string;
  /** Our user's join, signed by all who must. */
  readonly join: RoomEvent;
  /** Before the join. */
  readonly state: readonly Pdu[];
  readonly authChain: readonly Pdu[];
  /** Set where members were left out. */
  readonly partial?: {
    /** All servers in the room. */
    readonly servers: readonly string[];
    /** Where the stream of device lists is. */
    readonly deviceListsPos: number;
  };
}

/**
 * Brings this server into a room, with the state that another server gave it: for the first time or again. Nothing is
 * believed that does not stand the checks on received PDUs. State that fails them is left out, as it may matter to
 * nobody; without the create event, or with a join that the rest does not allow, the answer as a whole is refused.
 *
 * @param row the room's, where it is being made already
 */
export async function installRoom(
  rooms: Rooms,
  verifier: EventVerifier,
  answer: RoomAnswer,
  row?: Promise<Room>,
): Promise<StoredEvent> {
  const { join, server } = answer;
  const { roomId, version } = join;
  const read = await readPdus([...answer.state, ...answer.authChain], version);
  const ids = read.flatMap(({ event }) => event?.eventId ?? []);
  const [incoming, here] = await Promise.all([
    verifyIncoming(read, verifier),
    rooms.parts.events.nidsOf(ids),
  ]);
  const events = incoming.flatMap(({ event }) => (event?.roomId === roomId ? event : []));
  checkCreate(events, answer);
  const room = await (row ?? roomOfVersion(rooms, roomId, version));
  const judged = await judgeOutliers(rooms, room, events, new Set(ids.filter((id) => !here.has(id))));
  const outliers = new Map<string, Judged>(judged.known);
  for (const event of judged.fresh) outliers.set(event.eventId, event);

  const state = new Map<string, Judged>();
  for (const { eventId } of incoming.slice(0, answer.state.length)) {
    const event = eventId === undefined ? undefined : outliers.get(eventId);
    // Some servers count the join itself in.
    if (event?.stateKey === undefined || event.rejected || eventId === join.eventId) continue;
    const key = stateKeyOf(event.type, event.stateKey);
    if (state.has(key)) throw badAnswer(server, 'the state holds two events of a kind');
    state.set(key, event);
  }
  await checkJoin(rooms, answer, state, outliers);
  // Few enough are stored together with the join.
  if (judged.fresh.length > CHUNK) await storeOutliers(rooms, room, events);
  await rooms.parts.ids.ensure(judged.fresh.length);
  const { event, committed } = await rooms.exclusive(roomId, async (current) => {
    const [{ known, fresh }, found] = await Promise.all([
      numberOutliers(rooms, judged.fresh),
      rooms.parts.events.getMany([...join.prevEvents, join.eventId]),
      // The writer will need them.
      rooms.parts.snapshots.intern([...state.keys(), stateKeyOf('m.room.member', join.stateKey!)]),
    ]);
    const stored = new Map([...judged.known, ...known]);
    for (const event of fresh) stored.set(event.eventId, event);
    const before = new Map([...state].map(([key, { eventId }]) => [key, stored.get(eventId)!]));
    return enter(rooms, current, answer, { state: before, outliers: fresh, found });
  });
  await committed;
  return event;
}

/** The room must begin with a create event of its own and of the version that we spoke of. */
function checkCreate(events: readonly RoomEvent[], { server, join }: RoomAnswer): void {
  const create = events.find(({ type, stateKey }) => type === 'm.room.create' && stateKey === '');
  if (!create) throw badAnswer(server, 'the room has no create event');
  const version = create.content.room_version ?? '1';
  if (version !== join.version.id) throw badAnswer(server, 'the room has another version than was said');
}

/** Steps 4 and 5 of the checks on a received PDU, for the join that is to be the first event here. */
async function checkJoin(
  rooms: Rooms,
  { server, join, partial }: RoomAnswer,
  state: ReadonlyMap<string, Judged>,
  judged: ReadonlyMap<string, Judged>,
): Promise<void> {
  const lookUp = { get: (type: string, stateKey: string) => state.get(stateKeyOf(type, stateKey)) };
  const create = lookUp.get('m.room.create', '');
  if (!create) throw badAnswer(server, 'the state has no create event');
  const others = join.authEvents.filter((id) => !judged.has(id));
  const known = new Map<string, Judged>([...judged, ...(await rooms.parts.events.getMany(others))]);
  const authEvents = join.authEvents.map((id) => {
    const event = known.get(id);
    if (!event) throw badAnswer(server, 'events that authorise the join are missing');
    return event;
  });
  if (authoriseByAuthEvents(join, authEvents, join.version, create) !== undefined)
    throw forbidden('The room does not allow the join');
  const before = partial ? withToldMembers(lookUp, authEvents) : lookUp;
  const reason = authorise(join, before, join.version);
  if (reason !== undefined) throw badAnswer(server, `the room does not allow the join: ${reason}`);
}

interface Entry {
  /** Before the join. */
  readonly state: ReadonlyMap<string, StoredEvent>;
  /** To be stored with it. */
  readonly outliers: readonly StoredEvent[];
  /** What is here of the join and its predecessors. */
  readonly found: ReadonlyMap<string, StoredEvent>;
}

/** Under the room's lock: puts the state in the place of what was known, and the join after it. */
function enter(
  rooms: Rooms,
  room: Room,
  answer: RoomAnswer,
  { state, outliers, found }: Entry,
): Promise<Appended> {
  const { join } = answer;
  const { ids, snapshots, events } = rooms.parts;
  const missing = join.prevEvents.filter((id) => found.get(id)?.pos === undefined);
  const itself = found.get(join.eventId) ?? outliers.find(({ eventId }) => eventId === join.eventId);
  const nid = itself?.nid ?? ids.next();
  const joinKey = stateKeyOf('m.room.member', join.stateKey!);
  const joined: EventRef = { eventId: join.eventId, nid };
  const before = stateChanges(room, state);
  const stateBefore = before.size === 0 ? room.state : snapshots.derive(room.nid, room.state, before);
  const changes = new Map<string, EventRef | undefined>(before);
  for (const [key, ref] of staleMembers(rooms, room, answer, state)) changes.set(key, ref);
  changes.set(joinKey, joined);
  // For `unsigned.prev_content`, which is made from what is in memory.
  const replaced = state.get(joinKey);
  if (replaced) events.remember(replaced);
  const partial = partialState(rooms, room, answer, missing);
  room.setPartial(partial);
  return append(rooms, room, {
    event: join,
    status: 'accepted',
    stateBefore,
    after: {
      extremities: [join.eventId],
      state: snapshots.derive(room.nid, stateBefore, new Map([[joinKey, joined]])),
      changes,
      changedEvents: new Map([...state.values()].map((event) => [event.eventId, event])),
    },
    nid,
    missing,
    isNew: true,
    passedOnByOthers: true,
    outliers,
    also: (tx) => storePartialRoom(tx, room.nid, partial),
  });
}

/**
 * What has to be fetched after a join that left members out. One that goes on from what came after an earlier such join
 * changes nothing of that; the others' state is missing too.
 */
function partialState(
  rooms: Rooms,
  room: Room,
  { join, server, partial }: RoomAnswer,
  missing: readonly string[],
): PartialState | undefined {
  if (!partial) return undefined;
  const { joins = [], deviceListsPos = partial.deviceListsPos } = room.partial ?? {};
  const servers = new Set([...(room.partial?.servers ?? []), ...partial.servers]);
  servers.delete(rooms.parts.serverName);
  return {
    joins: joins.length > 0 && missing.length === 0 ? joins : [...joins, join.eventId].slice(-MAX_JOINS),
    server,
    servers: [...servers],
    deviceListsPos,
  };
}

/** What leads from the state known here, which may be that of an earlier stay, to the one given. */
function stateChanges(room: Room, state: ReadonlyMap<string, StoredEvent>): StateDelta {
  const changes = new Map<string, EventRef | undefined>();
  for (const [key] of room.state.entries()) if (!state.has(key)) changes.set(key, undefined);
  for (const [key, { eventId, nid }] of state)
    if (room.state.getKey(key)?.eventId !== eventId) changes.set(key, { eventId, nid });
  return changes;
}

/** Members who are known here by other events than the state's: invites and knocks from outside, and what ended them. */
function staleMembers(
  rooms: Rooms,
  room: Room,
  { partial }: RoomAnswer,
  state: ReadonlyMap<string, StoredEvent>,
): StateDelta {
  const changes = new Map<string, EventRef | undefined>();
  for (const [userId, member] of room.members()) {
    const key = stateKeyOf('m.room.member', userId);
    const event = state.get(key);
    // Of our other users the answer says nothing: their invites are still what they were.
    if (partial && !event && serverNameOf(userId) === rooms.parts.serverName) continue;
    if (event?.eventId !== member.eventId)
      changes.set(key, event && { eventId: event.eventId, nid: event.nid });
  }
  return changes;
}
