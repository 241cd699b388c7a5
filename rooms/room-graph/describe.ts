import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';

const MAX_LISTED = 100;

/** What an administrator sees of a room's graph. */
export interface GraphDescription {
  readonly room_id: string;
  readonly room_version: string;
  /** Whether this server is in the room. */
  readonly resident: boolean;
  /** Set while the room's members are being fetched. */
  readonly partial_state?: { readonly server: string; readonly servers: number };
  readonly members: Record<string, number>;
  readonly extremities: ReadonlyArray<{
    readonly event_id: string;
    readonly type?: string;
    readonly depth?: number;
    readonly status?: string;
  }>;
  /** Predecessors that are not here, the newest first; and how many there are. */
  readonly gaps: ReadonlyArray<{ readonly missing: string; readonly before: string }>;
  readonly gap_count: number;
  readonly events: {
    readonly placed: number;
    readonly backfilled: number;
    readonly state: number;
    readonly soft_failed: number;
    readonly rejected: number;
    readonly min_depth: number | null;
    readonly max_depth: number | null;
  };
  readonly state: {
    readonly snapshot: number;
    readonly entries: number;
    /** Entries in each of the layers that it consists of, the newest first. */
    readonly layers: readonly number[];
  };
  /** The newest events that were refused. */
  readonly refused: ReadonlyArray<{
    readonly event_id: string;
    readonly type: string;
    readonly status: string;
  }>;
}

const COUNTED = ['join', 'invite', 'knock', 'leave', 'ban'] as const;

export async function describeGraph(rooms: Rooms, room: Room): Promise<GraphDescription> {
  const { db, events } = rooms.parts;
  const [[counts], gaps, refused, ends] = await Promise.all([
    db.query<GraphDescription['events'] & { gaps: number }>(
      `SELECT count(*)::int AS placed, count(*) FILTER (WHERE backfilled)::int AS backfilled,
              count(*) FILTER (WHERE state_key IS NOT NULL)::int AS state,
              count(*) FILTER (WHERE status = 1)::int AS soft_failed,
              count(*) FILTER (WHERE status = 2)::int AS rejected,
              min(depth) AS min_depth, max(depth) AS max_depth,
              (SELECT count(*)::int FROM backward_extremities WHERE room = $1) AS gaps
       FROM events WHERE room = $1 AND pos IS NOT NULL`,
      [room.nid],
    ),
    db.query<{ missing: string; before: string }>(
      `SELECT event_id AS missing, successor AS before FROM backward_extremities WHERE room = $1
       ORDER BY pos DESC LIMIT ${MAX_LISTED}`,
      [room.nid],
    ),
    db.query<{ event_id: string; type: string; status: string }>(
      `SELECT event_id, type, CASE status WHEN 1 THEN 'soft-failed' ELSE 'rejected' END AS status
       FROM events WHERE room = $1 AND pos IS NOT NULL AND status <> 0 ORDER BY pos DESC LIMIT ${MAX_LISTED}`,
      [room.nid],
    ),
    events.getMany(room.extremities),
  ]);
  const { gaps: gapCount, ...eventCounts } = counts!;
  const layers: number[] = [];
  for (let layer = room.state.top; layer; layer = layer.base) layers.push(layer.entries.size);
  return {
    room_id: room.roomId,
    room_version: room.version.id,
    resident: room.isResident,
    ...(room.partial && {
      partial_state: { server: room.partial.server, servers: room.partial.servers.length },
    }),
    members: Object.fromEntries(COUNTED.map((membership) => [membership, room.count(membership)])),
    extremities: room.extremities.map((id) => {
      const event = ends.get(id);
      return { event_id: id, ...(event && { type: event.type, depth: event.depth, status: event.status }) };
    }),
    gaps,
    gap_count: gapCount,
    events: eventCounts,
    state: { snapshot: room.state.id, entries: [...room.state.entries()].length, layers },
    refused,
  };
}
