import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import type { Queryable } from './database.ts';

/** What an event says of its place in a thread (MSC2836). */
export interface Relationship {
  readonly parent: string;
  readonly relType: string;
}

/** `m.relationship` of an event, when it is one. */
export function relationshipOf(content: JsonObject): Relationship | undefined {
  const relationship = content['m.relationship'];
  if (typeof relationship !== 'object' || relationship === null || Array.isArray(relationship))
    return undefined;
  const { event_id: parent, rel_type: relType } = relationship;
  if (typeof parent !== 'string' || typeof relType !== 'string') return undefined;
  if (!/^\$[^\0]{1,254}$/u.test(parent) || !/^[^\0]{1,255}$/u.test(relType)) return undefined;
  return { parent, relType };
}

/** Keeps the relationships of events, in the transaction that stores these. */
export async function indexRelationships(
  tx: Queryable,
  events: ReadonlyArray<{ readonly roomNid: number; readonly event: RoomEvent }>,
): Promise<void> {
  const rows = events.flatMap(({ roomNid, event }) => {
    const relationship = relationshipOf(event.content);
    return relationship && relationship.parent !== event.eventId ? [{ roomNid, event, relationship }] : [];
  });
  if (rows.length === 0) return;
  await tx.query(
    {
      name: 'relationships-insert',
      text: `INSERT INTO event_relationships (room, parent, origin_server_ts, child, rel_type)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[])
             ON CONFLICT DO NOTHING`,
    },
    [
      rows.map(({ roomNid }) => roomNid),
      rows.map(({ relationship }) => relationship.parent),
      rows.map(({ event }) => event.originServerTs),
      rows.map(({ event }) => event.eventId),
      rows.map(({ relationship }) => relationship.relType),
    ],
  );
}
