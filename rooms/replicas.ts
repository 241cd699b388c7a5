import { redact } from '@trellis/protocol/redaction.ts';
import type { EventStore } from '@trellis/storage/events.ts';
import type { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { relationOf } from './append.ts';
import type { Room } from './room.ts';
import type { EventChange } from './rooms.ts';

/**
 * Moves a live room on by a change that another process made, with the same outcome as there. What the room contains
 * already is passed over.
 *
 * @returns false when the room has to be read again
 */
export function applyChange(
  parts: { readonly events: EventStore; readonly snapshots: StateSnapshots },
  room: Room,
  pos: number,
  { event, move, resynced }: EventChange,
): boolean {
  if (pos <= room.upTo) {
    // It has been read since; but what it did to others may have been done after those were read.
    touchOthers(parts.events, room, event, move?.redacted);
    return true;
  }
  if (!move || resynced || move.stateBefore !== room.state.id) return false;
  room.upTo = pos;
  room.extremities = move.extremities;
  room.depth = move.depth;
  room.state = parts.snapshots.adopt(room.nid, move.stateAfter, room.state, move.changes);
  if (move.isJump) room.lastStateJump = pos;
  for (const [userId, member] of move.members) room.setMember(userId, member);
  if (move.isCut) room.timeline.cut(pos);
  if (event.pos === pos) room.timeline.push(parts.events.cached(event.eventId) ?? event);
  touchOthers(parts.events, room, event, move.redacted);
  return true;
}

/** Tells copies of events in memory what another process's event means for them. */
export function touchOthers(
  events: EventStore,
  room: Room | undefined,
  event: StoredEvent,
  redacted: string | undefined,
): void {
  const related = relationOf(event)?.target;
  if (related !== undefined) for (const copy of copiesOf(events, room, related)) copy.hasRelations = true;
  if (redacted === undefined) return;
  for (const copy of copiesOf(events, room, redacted))
    if (!copy.redactedBy) copy.redact(redact(copy.pdu, copy.version), event);
  // Who is reading it now may get it as it was.
  events.outdated(redacted);
}

/** The cache and the timeline of the room may have an object each. */
function copiesOf(events: EventStore, room: Room | undefined, eventId: string): Set<StoredEvent> {
  const copies = new Set<StoredEvent>();
  const cached = events.cached(eventId);
  if (cached) copies.add(cached);
  const recent = room?.timeline.find(eventId);
  if (recent) copies.add(recent);
  return copies;
}
