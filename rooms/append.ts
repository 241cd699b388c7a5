import { MatrixError } from '@trellis/protocol/errors.ts';
import { type RoomEvent, splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { EventWrite, MembershipRow, RelationRow } from '@trellis/storage/event-writer.ts';
import type { EventRef, Snapshot, StateDelta } from '@trellis/storage/state-snapshots.ts';
import {
  type EventStatus,
  type EventTransaction,
  type ReplacedState,
  StoredEvent,
} from '@trellis/storage/stored-event.ts';
import { applyRedaction } from './redactions.ts';
import { type Member, memberFromEvent, type Room } from './room.ts';
import type { EventChange, RoomMove, Rooms } from './rooms.ts';
import { storeSticky } from './sticky-events.ts';

/**
 * Positions left free before an event whose predecessors are not here: backfilled history takes its place in the
 * room's order there.
 */
export const BACKFILL_HOLE = 2 ** 24;

/** The relation type under which `relations` keeps redactions; never shown to clients. */
export const REDACTION = 'm.room.redaction';

export interface Append {
  readonly event: RoomEvent;
  readonly status: EventStatus;
  readonly stateBefore: Snapshot;
  /** The room after the event. Left out for events that do not become part of the room's end. */
  readonly after?: {
    readonly extremities: readonly string[];
    /** `changes` is what differs from the room's state until now; `state` is that with `changes` applied. */
    readonly state: Snapshot;
    readonly changes: StateDelta;
    /** Events that `changes` refers to, besides the appended one. */
    readonly changedEvents?: ReadonlyMap<string, StoredEvent>;
  };
  readonly transaction?: EventTransaction;
  /** The nid that the event has already, as an outlier. */
  readonly nid?: number;
  /** Predecessors that are not here. */
  readonly missing?: readonly string[];
  /** See `EventChange`. */
  readonly relayFrom?: string;
  /** The room begins anew with it: other processes are to read it again. */
  readonly isNew?: boolean;
  /** Another server passes the event on to those of the room: this server's own join by a handshake. */
  readonly passedOnByOthers?: boolean;
  /** Outliers that are stored with the event, before it. */
  readonly outliers?: readonly StoredEvent[];
  /** Runs in the transaction that stores the event. */
  readonly also?: (tx: Queryable) => Promise<void>;
}

export interface Appended {
  readonly event: StoredEvent;
  /** Resolves when the event is safely stored, and then announced; rejects when it never will be. */
  readonly committed: Promise<void>;
}

/**
 * Puts an event at the end of a room's order. To be called under the room's lock, with everything decided: this
 * changes the live state at once and hands the event to the writer.
 */
export async function append(rooms: Rooms, room: Room, plan: Append): Promise<Appended> {
  const pos = await rooms.nextPosition(room.roomId, plan.missing?.length ? BACKFILL_HOLE : 0);
  try {
    if (room.dropped) throw new MatrixError(503, 'M_UNKNOWN', 'What the event builds on was not stored');
    return appendAt(rooms, room, plan, pos);
  } catch (error) {
    rooms.drop(room);
    await conclude(rooms, pos, []);
    throw error;
  }
}

/**
 * Completes a position for whose change it is decided already whether it is stored. With several processes nobody may be
 * there who would take it, as they have to agree anew first: then all find in the database what there is.
 */
export function conclude(rooms: Rooms, pos: number, changes: readonly EventChange[]): void | Promise<void> {
  return rooms.parts.stream.complete(pos, changes)?.catch((error: unknown) => {
    if (!(error instanceof MatrixError)) throw error;
  });
}

function appendAt(rooms: Rooms, room: Room, plan: Append, pos: number): Appended {
  const { ids, events, writer, cluster } = rooms.parts;
  const nid = plan.nid ?? ids.next();
  const replaces = replacedBy(rooms, plan);
  const event = new StoredEvent(
    plan.event,
    {
      nid,
      pos,
      status: plan.status,
      stateBefore: plan.stateBefore.id,
      // What was known of the room from outside, or from an earlier stay, is nothing that readers have followed.
      roomStateBefore: room.isResident ? room.state.id : undefined,
    },
    { replaces, transaction: plan.transaction },
  );
  // Others' events may come after what relates to them.
  if (serverNameOf(event.sender) === rooms.parts.serverName) event.hasRelations = false;
  for (const each of plan.outliers ?? []) events.remember(each);
  events.remember(event);
  const relation = event.status === 'accepted' ? relationOf(event) : undefined;

  const serversBefore = room.otherServers;
  const stateBefore = room.state.id;
  const memberships = plan.after ? changeState(room, plan.after, event, pos) : [];
  room.upTo = pos;
  if (plan.missing?.length) room.timeline.cut(pos);
  if (event.status === 'accepted') room.timeline.push(event);
  const servers = { before: serversBefore, after: room.otherServers };
  const move = cluster.shared && !plan.isNew ? moveOf(room, plan, stateBefore, memberships) : undefined;
  const redaction =
    event.status === 'accepted' ? applyRedaction(rooms, room, event, plan.stateBefore) : undefined;

  room.uncommitted++;
  const committed = writer
    .write([
      ...(plan.outliers ?? []).map((outlier) => outlierWrite(room, outlier)),
      {
        roomNid: room.nid,
        event,
        snapshots: plan.after ? [plan.stateBefore, plan.after.state] : [plan.stateBefore],
        room: plan.after && { extremities: room.extremities, state: room.state.id, depth: room.depth },
        memberships: memberships.flatMap(({ userId, member }) =>
          member ? [membershipRow(userId, member)] : [],
        ),
        relation,
        missing: plan.missing,
        also: allOf(
          plan.also,
          redaction?.store,
          removedMembers(room, memberships),
          markRelayed(room, pos, plan),
          plan.status === 'rejected' ? undefined : storeSticky(room, plan.event, pos),
        ),
      },
    ])
    .then(
      async () => {
        if (relation) markRelated(rooms, room, relation.target);
        const redacted = redaction?.applied();
        const change: EventChange = {
          roomId: room.roomId,
          event,
          outOfBand: false,
          relayFrom: plan.relayFrom,
          servers,
          passedOnByOthers: plan.passedOnByOthers,
          memberships: memberships.map(({ userId, before, member }) => ({
            userId,
            before,
            after: member?.membership,
          })),
          ...(move && { move: redacted === undefined ? move : { ...move, redacted } }),
        };
        // Nobody hears of what was rejected or soft-failed.
        if (event.status === 'accepted') return conclude(rooms, pos, [change]);
        await tellUnheard(rooms, room, plan).finally(() => conclude(rooms, pos, []));
      },
      async (error: unknown) => {
        for (const { eventId } of [...(plan.outliers ?? []), event]) events.forget(eventId);
        rooms.drop(room);
        await conclude(rooms, pos, []);
        throw error;
      },
    )
    .finally(() => {
      room.uncommitted--;
    });
  // Whoever appended may stop waiting; the failure has been dealt with above.
  committed.catch(() => {});
  return { event, committed };
}

/** An event that is stored without a place in the room's order. */
export function outlierWrite(room: Room, event: StoredEvent): EventWrite {
  return { roomNid: room.nid, event, snapshots: [], memberships: [] };
}

/** Beyond that other processes read the room again. */
const MAX_MOVED = 1_000;

/** What other processes need to follow the live room, which has been moved on. */
function moveOf(
  room: Room,
  { after, missing }: Append,
  stateBefore: number,
  memberships: readonly MembershipChange[],
): RoomMove | undefined {
  const changes: StateDelta = after?.changes ?? new Map();
  if (changes.size > MAX_MOVED) return undefined;
  return {
    stateBefore,
    stateAfter: room.state.id,
    changes,
    extremities: room.extremities,
    depth: room.depth,
    members: memberships.map(({ userId, member }) => [userId, member]),
    isJump: room.lastStateJump === room.upTo,
    isCut: (missing?.length ?? 0) > 0,
  };
}

/** An event that is not announced may have changed the room all the same, or have been here without a place. */
async function tellUnheard(rooms: Rooms, room: Room, { event, after, nid }: Append): Promise<void> {
  if (!after && nid === undefined) return;
  await rooms.changed(room.roomId, { eventIds: nid === undefined ? [] : [event.eventId], keep: !after });
}

/** Tells the copies of an event in memory that something relates to it. Once committed: readers look it up at once. */
function markRelated(rooms: Rooms, room: Room, eventId: string): void {
  const cached = rooms.parts.events.cached(eventId);
  if (cached) cached.hasRelations = true;
  const recent = room.timeline.events.find((event) => event.eventId === eventId);
  if (recent) recent.hasRelations = true;
}

interface MembershipChange {
  readonly userId: string;
  readonly before: string | undefined;
  readonly member: Member | undefined;
}

/** Moves the live room on to the state after an event. */
function changeState(
  room: Room,
  after: NonNullable<Append['after']>,
  event: StoredEvent,
  pos: number,
): MembershipChange[] {
  room.extremities = after.extremities;
  room.depth = Math.max(room.depth, event.depth);
  room.state = after.state;
  const own = event.stateKey === undefined ? undefined : stateKeyOf(event.type, event.stateKey);
  for (const key of after.changes.keys()) if (key !== own) room.lastStateJump = pos;
  const memberships: MembershipChange[] = [];
  for (const [key, ref] of after.changes) {
    const [type, userId] = splitStateKey(key);
    if (type !== 'm.room.member') continue;
    const source = ref?.eventId === event.eventId ? event : ref && after.changedEvents?.get(ref.eventId);
    if (ref && !source) throw new Error(`the event ${ref.eventId} of a changed membership was not given`);
    const before = room.member(userId);
    const changed = source && memberFromEvent(source, pos);
    // A new name or avatar is no new membership.
    const member =
      changed && before?.membership === changed.membership ? { ...changed, pos: before.pos } : changed;
    memberships.push({ userId, before: before?.membership, member });
    room.setMember(userId, member);
  }
  return memberships;
}

export function membershipRow(userId: string, member: Member): MembershipRow {
  return { userId, ...member, strippedState: null };
}

/** State resolution can take a membership away altogether. */
function removedMembers(room: Room, changes: readonly MembershipChange[]) {
  const gone = changes.filter(({ member }) => !member).map(({ userId }) => userId);
  if (gone.length === 0) return undefined;
  return async (tx: Queryable) => {
    await tx.query('DELETE FROM room_members WHERE room = $1 AND user_id = ANY($2)', [room.nid, gone]);
  };
}

/** So that the event is passed on after a restart too. */
function markRelayed(room: Room, pos: number, plan: Append) {
  if (plan.relayFrom === undefined) return undefined;
  return async (tx: Queryable) => {
    await tx.query('INSERT INTO relayed_events (room, pos) VALUES ($1, $2)', [room.nid, pos]);
  };
}

function replacedBy(rooms: Rooms, plan: Append): ReplacedState | undefined {
  const { type, stateKey } = plan.event;
  if (stateKey === undefined) return undefined;
  const before: EventRef | undefined = plan.stateBefore.get(type, stateKey);
  const replaced = before && rooms.parts.events.cached(before.eventId);
  return replaced && { eventId: replaced.eventId, sender: replaced.sender, content: replaced.content };
}

/**
 * `m.relates_to` as a row, when it is one (spec: "Forming relationships between events"). A redaction is kept as a
 * relation too, so that it is found when it arrives before its target.
 */
export function relationOf(event: RoomEvent): RelationRow | undefined {
  if (event.type === 'm.room.redaction' && event.redacts !== undefined && event.redacts.length <= 255)
    return { target: event.redacts, relType: REDACTION, aggregationKey: null };
  const relates = event.content['m.relates_to'];
  if (typeof relates !== 'object' || relates === null || Array.isArray(relates)) return undefined;
  const { event_id: target, rel_type: relType, key } = relates;
  if (
    typeof target !== 'string' ||
    typeof relType !== 'string' ||
    target.length > 255 ||
    relType.length > 255
  )
    return undefined;
  return { target, relType, aggregationKey: typeof key === 'string' && key.length <= 1024 ? key : null };
}

function allOf(
  ...tasks: Array<((tx: Queryable) => Promise<void>) | undefined>
): ((tx: Queryable) => Promise<void>) | undefined {
  const given = tasks.filter((task) => task !== undefined);
  if (given.length === 0) return undefined;
  return async (tx) => {
    for (const task of given) await task(tx);
  };
}
