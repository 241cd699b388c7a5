import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { column } from '@trellis/storage/event-writer.ts';
import { relationshipOf } from '@trellis/storage/relationships.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/**
 * Refuses relationships that local users may not make: a thread off an event that relates to another (spec:
 * "Validation of `m.thread` relationships"), the same annotation twice (spec: "Avoiding duplicate annotations"), a place
 * in the thread of an event that is not known (MSC2836: "Making relationships").
 *
 * @throws M_UNKNOWN, M_DUPLICATE_ANNOTATION
 */
export async function checkRelation(
  rooms: Rooms,
  room: Room,
  draft: { readonly type: string; readonly sender: string; readonly content: JsonObject },
): Promise<void> {
  const relationship = relationshipOf(draft.content);
  if (relationship && !(await rooms.parts.events.get(relationship.parent)))
    throw new MatrixError(400, 'M_UNKNOWN', 'The event that m.relationship names is not known');
  const relates = relationIn(draft.content);
  if (typeof relates?.event_id !== 'string') return;
  if (relates.rel_type === 'm.thread') {
    const root = await rooms.parts.events.get(relates.event_id);
    if (root && relationIn(root.content)?.rel_type !== undefined)
      throw new MatrixError(400, 'M_UNKNOWN', 'A thread cannot start from an event that relates to another');
  }
  if (relates.rel_type !== 'm.annotation' || typeof relates.key !== 'string') return;
  const same = await rooms.parts.db.query(
    {
      name: 'same-annotation',
      text: `SELECT 1 FROM relations r JOIN events e ON e.event_id = r.event_id
             WHERE r.room = $1 AND r.target = $2 AND r.rel_type = 'm.annotation' AND r.sender = $3 AND r.type = $4
               AND r.aggregation_key = $5 AND e.status = 0 AND e.redacted_by IS NULL LIMIT 1`,
    },
    [room.nid, column(relates.event_id), draft.sender, column(draft.type), column(relates.key)],
  );
  if (same.length > 0)
    throw new MatrixError(400, 'M_DUPLICATE_ANNOTATION', 'You have sent that annotation already');
}

function relationIn(content: JsonObject): JsonObject | undefined {
  const relates = content['m.relates_to'];
  return typeof relates === 'object' && relates !== null && !Array.isArray(relates) ? relates : undefined;
}
