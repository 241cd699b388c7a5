import type { Room } from '@trellis/rooms/room.ts';
import { eventListJson } from '../event-json.ts';
import type { SyncView } from './room-sections.ts';
import type { Timeline } from './timeline.ts';

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
