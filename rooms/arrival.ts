import { mayApplyRedaction } from '@trellis/protocol/auth-rules/index.ts';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { viewOf } from '@trellis/protocol/make-event.ts';
import { redact } from '@trellis/protocol/redaction.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { REDACTION } from './append.ts';
import { loadAuthState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** What was here of an event before it came itself. */
export interface Arrival {
  /** Accepted events name it as their predecessor. */
  readonly followed: boolean;
  /** Events of any kind wait for it as their predecessor. */
  readonly awaited: boolean;
  /** A redaction that empties it. */
  readonly redactedBy: StoredEvent | undefined;
}

/** Redactions of one event that are looked at. */
const MAX_REDACTIONS = 10;

interface ArrivalRow {
  eventId: string;
  kind: 'known' | 'awaited' | 'followed' | 'redacted';
  /** The redaction. */
  other: string | null;
}

/** What is here of several events, found by one look at the database. */
export interface Arrivals {
  readonly of: (event: RoomEvent) => Arrival;
  /** Those that are in the database already, with or without a place. */
  readonly known: ReadonlySet<string>;
}

export async function arrivalOf(rooms: Rooms, room: Room, event: RoomEvent): Promise<Arrival> {
  return (await arrivalsOf(rooms, room, [event])).of(event);
}

export async function arrivalsOf(rooms: Rooms, room: Room, events: readonly RoomEvent[]): Promise<Arrivals> {
  const rows = await rooms.parts.db.query<ArrivalRow>(
    {
      name: 'event-arrivals',
      text: `SELECT event_id AS "eventId", 'known' AS kind, NULL AS other FROM events WHERE event_id = ANY($2)
             UNION ALL
             SELECT b.event_id, CASE WHEN s.status = 0 THEN 'followed' ELSE 'awaited' END, NULL
             FROM backward_extremities b LEFT JOIN events s ON s.event_id = b.successor
             WHERE b.room = $1 AND b.event_id = ANY($2)
             UNION ALL
             SELECT target, 'redacted', event_id FROM (
               SELECT target, event_id, row_number() OVER (PARTITION BY target ORDER BY pos) AS n
               FROM relations WHERE room = $1 AND target = ANY($2) AND rel_type = $3) AS redactions
             WHERE n <= ${MAX_REDACTIONS}`,
    },
    [room.nid, events.map(({ eventId }) => eventId), REDACTION],
  );
  const byEvent = Map.groupBy(rows, ({ eventId }) => eventId);
  const arrivals = new Map<string, Arrival>();
  for (const event of events) {
    const found = byEvent.get(event.eventId);
    if (found) arrivals.set(event.eventId, await arrivalBy(rooms, event, found));
  }
  return {
    of: ({ eventId }) => arrivals.get(eventId) ?? NOTHING,
    known: new Set(rows.flatMap(({ eventId, kind }) => (kind === 'known' ? eventId : []))),
  };
}

const NOTHING: Arrival = { awaited: false, followed: false, redactedBy: undefined };

async function arrivalBy(rooms: Rooms, event: RoomEvent, rows: readonly ArrivalRow[]): Promise<Arrival> {
  const followed = rows.some(({ kind }) => kind === 'followed');
  const redactions = rows.flatMap(({ kind, other }) => (kind === 'redacted' && other ? other : []));
  return {
    awaited: followed || rows.some(({ kind }) => kind === 'awaited'),
    followed,
    redactedBy: await effective(rooms, redactions, event),
  };
}

/** The event as it is to be kept: empty when its redaction came before it. */
export function asArrived(event: RoomEvent, { redactedBy }: Arrival): RoomEvent {
  return redactedBy ? viewOf(redact(event.pdu, event.version), event.eventId, event.version) : event;
}

/** What is to be stored together with the event as it arrived. */
export function settlement(
  room: Room,
  arrived: RoomEvent,
  { awaited, redactedBy }: Arrival,
): ((tx: Queryable) => Promise<void>) | undefined {
  if (!awaited && !redactedBy) return undefined;
  return async (tx) => {
    if (awaited)
      await tx.query('DELETE FROM backward_extremities WHERE room = $1 AND event_id = $2', [
        room.nid,
        arrived.eventId,
      ]);
    // The event may have been here as an outlier, with all its contents.
    if (redactedBy)
      await tx.query('UPDATE events SET redacted_by = $2, json = $3 WHERE event_id = $1', [
        arrived.eventId,
        redactedBy.eventId,
        JSON.stringify(arrived.pdu),
      ]);
  };
}

async function effective(
  rooms: Rooms,
  redactions: readonly string[],
  target: RoomEvent,
): Promise<StoredEvent | undefined> {
  if (redactions.length === 0) return undefined;
  const found = await rooms.parts.events.getMany(redactions);
  for (const redaction of found.values()) {
    if (redaction.status !== 'accepted' || redaction.stateBefore === undefined) continue;
    const state = await rooms.parts.snapshots.load(redaction.stateBefore);
    const authState = await loadAuthState(rooms, state, [
      ['m.room.create', ''],
      ['m.room.power_levels', ''],
    ]);
    if (mayApplyRedaction(redaction, target, authState, target.version)) return redaction;
  }
  return undefined;
}
