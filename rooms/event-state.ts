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

/** The state of the room as it was known here once everything at or before a position had happened. */
export async function stateAtPosition(rooms: Rooms, room: Room, pos: number): Promise<Snapshot> {
  const recent = room.timeline.firstAfter(pos);
  const [older] =
    pos >= room.timeline.from
      ? []
      : await rooms.parts.events.timeline(room.nid, { after: pos, direction: 'forward', limit: 1 });
  const next = older ?? recent;
  return next ? roomStateBefore(rooms, next) : room.state;
}

/**
 * The state of the room as it was known here just before an event came. Not the state before the event itself, which
 * may fork off an old one: that says nothing of what else the room held by then.
 */
export async function roomStateBefore(rooms: Rooms, event: StoredEvent): Promise<Snapshot> {
  return event.roomStateBefore === undefined
    ? Snapshot.empty
    : rooms.parts.snapshots.load(event.roomStateBefore);
}
