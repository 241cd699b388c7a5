import { boundedQuery } from '@trellis/rooms/threading-msc2836/query.ts';
import type { ChildrenSummary } from '@trellis/rooms/threading-msc2836/thread-store.ts';
import type { Threads } from '@trellis/rooms/threading-msc2836/threads.ts';
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';

export interface EventRelationshipsDeps {
  readonly threads: Pick<Threads, 'forUser'>;
  readonly clientEvents: ClientEvents;
}

const flag = Type.Optional(Type.Boolean());
const count = Type.Optional(Type.Integer());
const body = Type.Object({
  event_id: Type.String({ maxLength: 255 }),
  /** Whose servers know the event, when this one does not. */
  room_id: Type.Optional(Type.String({ maxLength: 255 })),
  max_depth: count,
  max_breadth: count,
  limit: count,
  depth_first: flag,
  recent_first: flag,
  include_parent: flag,
  include_children: flag,
  direction: Type.Optional(Type.Union([Type.Literal('up'), Type.Literal('down')])),
});

/**
 * `POST /event_relationships` (MSC2836: "Querying relationships"). The MSC lets a server leave out `next_batch`, and
 * threads across rooms are an extension of it: both are not here.
 */
export function eventRelationshipsRoutes(
  app: FastifyInstance,
  { threads, clientEvents }: EventRelationshipsDeps,
): void {
  app.post<{ Body: Static<typeof body> }>(
    '/_matrix/client/unstable/event_relationships',
    { schema: { body } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const { event_id: eventId, room_id: roomId, ...query } = request.body;
      const part = await threads.forUser(reader.userId, { eventId, roomId }, boundedQuery(query));
      const texts = await clientEvents.json(part.room, part.events, reader);
      const events = texts.map((json, i) => withChildren(json, part.summaries.get(part.events[i]!.eventId)));
      return sendJson(reply, `{"events":[${events.join(',')}],"limited":${part.limited}}`);
    },
  );
}

/** An event as JSON text, which ends with `unsigned`, with what is known of its children. */
function withChildren(json: string, summary: ChildrenSummary | undefined): string {
  if (!summary) return json;
  const children = JSON.stringify({ children: summary.children, children_hash: summary.hash });
  return `${json.slice(0, -2)},${children.slice(1)}}`;
}
