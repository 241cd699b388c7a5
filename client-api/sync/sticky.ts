import type { Room } from '@trellis/rooms/room.ts';
import type { StickyEvents } from '@trellis/rooms/sticky-events.ts';
import { eventListJson } from '../event-json.ts';
import type { SyncView, Timeline } from './view.ts';

/**
 * The sticky events that a timeline leaves out (MSC4354), as JSON text. Who is in the room may see them whatever its
 * history visibility says.
 *
 * @param from what the client has of the room; `undefined` where it has nothing
 */
export async function stickyJson(
  view: SyncView,
  room: Room,
  timeline: Timeline,
  from: number | undefined,
): Promise<string | undefined> {
  const { sticky } = view.sources;
  if (!sticky?.has(room.roomId)) return undefined;
  const events = await sticky.between(room.roomId, from, view.eventsTo);
  if (events.length === 0) return undefined;
  const shown = new Set(timeline.events.map(({ eventId }) => eventId));
  const left = events.filter(({ eventId, sender }) => !shown.has(eventId) && !view.ignored.has(sender));
  if (left.length === 0) return undefined;
  const { userId, deviceId } = view;
  return eventListJson(left, { userId, deviceId, membership: 'join' });
}

export interface StickyRequest {
  readonly sticky: Pick<StickyEvents, 'has' | 'between'>;
  readonly userId: string;
  readonly deviceId: string | undefined;
  readonly ignored: ReadonlySet<string>;
  /** Rooms that the user is joined to. */
  readonly roomIds: Iterable<string>;
  /** Positions of events: what the client has, `undefined` for nothing, and up to where it is told now. */
  readonly since: number | undefined;
  readonly to: number;
}

/** The extension `org.matrix.msc4354.sticky_events` of sliding sync (MSC4480), as JSON text. */
export async function stickyExtensionJson(request: StickyRequest): Promise<{ json: string; empty: boolean }> {
  const { sticky, userId, deviceId, ignored, since, to } = request;
  const rooms: string[] = [];
  for (const roomId of request.roomIds) {
    if (!sticky.has(roomId)) continue;
    const events = (await sticky.between(roomId, since, to)).filter(({ sender }) => !ignored.has(sender));
    if (events.length === 0) continue;
    const list = eventListJson(events, { userId, deviceId, membership: 'join' });
    rooms.push(`${JSON.stringify(roomId)}:{"events":${list}}`);
  }
  return { json: `{"next_batch":"${to}","rooms":{${rooms.join(',')}}}`, empty: rooms.length === 0 };
}
