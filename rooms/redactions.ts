import { mayApplyRedaction } from '@trellis/protocol/auth-rules/index.ts';
import { redact } from '@trellis/protocol/redaction.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadAuthState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

interface RedactionWork {
  /** Stores it, in the transaction that stores the redaction. */
  store(tx: Queryable): Promise<void>;
  /**
   * After the commit.
   *
   * @returns the event that was emptied
   */
  applied(): string | undefined;
}

/**
 * What an accepted event does to others by redaction: a redaction empties its target, and an event that arrives after
 * its redaction is emptied at once. Since room version 3 redactions are checked here and not by the auth rules
 * (spec: "Handling redactions"): the target must be of the same room, and the redaction's sender must have the power
 * or be of the target's server.
 */
export function applyRedaction(
  rooms: Rooms,
  room: Room,
  event: StoredEvent,
  state: Snapshot,
): RedactionWork | undefined {
  const targetId = event.type === 'm.room.redaction' ? event.redacts : undefined;
  if (targetId === undefined) return undefined;
  let target: StoredEvent | undefined;
  return {
    async store(tx) {
      target = await rooms.parts.events.get(targetId);
      if (!target || target.roomId !== room.roomId || target.redactedBy) {
        target = undefined;
        return;
      }
      const authState = await loadAuthState(rooms, state, [
        ['m.room.create', ''],
        ['m.room.power_levels', ''],
      ]);
      if (!mayApplyRedaction(event, target, authState, room.version)) {
        target = undefined;
        return;
      }
      await rooms.parts.redactedOriginals?.keep(tx, target);
      await tx.query('UPDATE events SET json = $2, redacted_by = $3 WHERE event_id = $1', [
        target.eventId,
        JSON.stringify(redact(target.pdu, room.version)),
        event.eventId,
      ]);
    },
    applied() {
      if (!target) return undefined;
      const emptied = redact(target.pdu, room.version);
      // The timeline in memory may hold an object of its own, when the cache had dropped the event in between.
      for (const copy of new Set([target, rooms.parts.events.cached(targetId), room.timeline.find(targetId)]))
        copy?.redact(emptied, event);
      rooms.parts.events.outdated(targetId);
      return targetId;
    },
  };
}
