import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { forbidden } from '@trellis/protocol/errors.ts';
import { type JsonObject, type RoomEvent, stateKeyOf } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import type { StateDelta } from '@trellis/storage/state-snapshots.ts';
import type { EventTransaction, StoredEvent } from '@trellis/storage/stored-event.ts';
import { type Append, type Appended, append } from './append.ts';
import { loadState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Predecessors that a new event names at the most; the rest stays for the events after it. */
export const MAX_PREV_EVENTS = 10;

/** An event as a local user wants it. */
export interface Draft {
  readonly type: string;
  readonly sender: string;
  readonly stateKey?: string;
  readonly content: JsonObject;
  /** For redactions: the target; put where the room version has it. */
  readonly redacts?: string;
  /** For how long the event is sticky, in milliseconds (MSC4354). */
  readonly stickyMs?: number | undefined;
  /** Milliseconds; now when left out. Application services may say another (spec: "Timestamp massaging"). */
  readonly originServerTs?: number;
}

/**
 * Builds an event on the room's live state, authorises, signs and appends it. To be called under the room's lock.
 * Throws M_FORBIDDEN when the auth rules refuse it, M_TOO_LARGE when it is too large.
 *
 * @param also runs in the transaction that stores the event
 * @returns the event, or for state that changes nothing the event that set it
 */
export async function appendDraft(
  rooms: Rooms,
  room: Room,
  draft: Draft,
  transaction?: EventTransaction,
  also?: Append['also'],
): Promise<Appended> {
  const same = await unchangedState(rooms, room, draft);
  if (same) return { event: same, committed: Promise.resolve() };
  const event = await buildDraft(rooms, room, draft);
  return appendBuilt(rooms, room, event, transaction, also);
}

/**
 * Builds and signs an event on the room's live state, without a check whether it may be.
 *
 * @param maxPrev ends of the graph that it joins at the most
 */
export async function buildDraft(
  rooms: Rooms,
  room: Room,
  draft: Draft,
  maxPrev = MAX_PREV_EVENTS,
): Promise<RoomEvent> {
  const { serverName, signingKey } = rooms.parts;
  const { version } = room;
  const keys = authEventKeys({ ...draft, stateKey: draft.stateKey }, version);
  const content =
    draft.redacts !== undefined && version.redactsInContent
      ? { ...draft.content, redacts: draft.redacts }
      : draft.content;
  const event = buildEvent(
    {
      ...(version.roomIdIsCreateHash && draft.type === 'm.room.create' ? {} : { room_id: room.roomId }),
      sender: draft.sender,
      type: draft.type,
      ...(draft.stateKey === undefined ? {} : { state_key: draft.stateKey }),
      content,
      ...(draft.stickyMs === undefined ? {} : { msc4354_sticky: { duration_ms: draft.stickyMs } }),
      ...(draft.redacts !== undefined && !version.redactsInContent ? { redacts: draft.redacts } : {}),
      prev_events: room.extremities.slice(0, maxPrev),
      auth_events: keys.flatMap((key) => room.state.getKey(key)?.eventId ?? []),
      depth: nextDepth(room),
      origin_server_ts: draft.originServerTs ?? Date.now(),
    },
    { version, key: signingKey, serverName },
  );
  checkPdu(event.pdu, version);
  return event;
}

/** Depth of an event after the room's end; others may have driven it to the largest that there is. */
export function nextDepth(room: Room): number {
  return Math.min(room.depth + 1, Number.MAX_SAFE_INTEGER);
}

/** Throws M_FORBIDDEN when the room's live state does not allow an event. */
export async function requireAllowed(rooms: Rooms, room: Room, event: RoomEvent): Promise<void> {
  const keys = [...authEventKeys(event, room.version), stateKeyOf('m.room.create', '')];
  const authState = await loadState(rooms, room.state, keys);
  const reason = authorise(event, authState, room.version);
  if (reason !== undefined) throw forbidden(reason);
}

/**
 * Authorises an event against the room's live state, has the room's policy server sign it where there is one, and
 * appends it. To be called under the room's lock.
 */
export async function appendBuilt(
  rooms: Rooms,
  room: Room,
  built: RoomEvent,
  transaction?: EventTransaction,
  also?: Append['also'],
): Promise<Appended> {
  await requireAllowed(rooms, room, built);
  const { ids, snapshots, policies } = rooms.parts;
  const event = (await policies?.signed(rooms, room, built)) ?? built;
  const nid = ids.next();
  const changes: StateDelta =
    event.stateKey === undefined
      ? new Map()
      : new Map([[stateKeyOf(event.type, event.stateKey), { eventId: event.eventId, nid }]]);
  // For `unsigned.prev_content`, which is made from what is in memory.
  if (event.stateKey !== undefined) await loadState(rooms, room.state, [...changes.keys()]);
  return append(rooms, room, {
    event,
    status: 'accepted',
    stateBefore: room.state,
    after: {
      extremities: [event.eventId, ...room.extremities.slice(MAX_PREV_EVENTS)],
      state: changes.size === 0 ? room.state : snapshots.derive(room.nid, room.state, changes),
      changes,
    },
    transaction,
    nid,
    also,
  });
}

/** Sends one event and waits until it is safely stored. */
export async function sendEvent(rooms: Rooms, roomId: string, draft: Draft): Promise<StoredEvent> {
  const { event, committed } = await rooms.exclusive(roomId, (room) => appendDraft(rooms, room, draft));
  await committed;
  return event;
}

/** The current state event that a draft would only repeat: nothing is sent then. */
async function unchangedState(rooms: Rooms, room: Room, draft: Draft): Promise<StoredEvent | undefined> {
  // Sticky state is sent to be sticky anew.
  if (draft.stateKey === undefined || draft.stickyMs !== undefined) return undefined;
  const ref = room.state.get(draft.type, draft.stateKey);
  const current = ref && (await rooms.parts.events.get(ref.eventId));
  if (!current || current.sender !== draft.sender || current.redactedBy) return undefined;
  return canonicalJson(current.content, { lax: true }) === canonicalJson(draft.content, { lax: true })
    ? current
    : undefined;
}
