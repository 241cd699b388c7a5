import { stateKeyOf } from '@trellis/protocol/event.ts';
import { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** The state of the room right after an event: that before it, with what the event itself sets. */
export async function stateAfterEvent(rooms: Rooms, event: StoredEvent): Promise<Snapshot> {
  if (event.stateBefore === undefined) return Snapshot.empty;
  const before = await rooms.parts.snapshots.load(event.stateBefore);
  if (event.stateKey === undefined || event.status !== 'accepted') return before;
  return before.overlaid(new Map([[stateKeyOf(event.type, event.stateKey), event]]));
}

/** The state of the room once everything at or before a position had happened. */
export async function stateAtPosition(rooms: Rooms, room: Room, pos: number): Promise<Snapshot> {
  const newest = room.timeline.newest;
  if (newest === undefined || newest.pos! <= pos) return room.state;
  const [next] = await rooms.parts.events.timeline(room.nid, { after: pos, direction: 'forward', limit: 1 });
  if (!next) return room.state;
  return next.stateBefore === undefined ? Snapshot.empty : rooms.parts.snapshots.load(next.stateBefore);
}
