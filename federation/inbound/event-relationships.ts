import { notFound } from '@trellis/protocol/errors.ts';
import { authChain } from '@trellis/rooms/auth-chain.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { boundedQuery } from '@trellis/rooms/threading-msc2836/query.ts';
import type { Threads } from '@trellis/rooms/threading-msc2836/threads.ts';
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { originOf } from './authentication.ts';
import { jsonList, jsonOf, roomOfMember } from './member-server.ts';

export interface EventRelationshipsDeps {
  readonly rooms: Rooms;
  readonly threads: Pick<Threads, 'forServer'>;
}

const flag = Type.Optional(Type.Boolean());
const count = Type.Optional(Type.Integer());
const body = Type.Object({
  event_id: Type.String({ maxLength: 255 }),
  max_depth: count,
  max_breadth: count,
  limit: count,
  depth_first: flag,
  recent_first: flag,
  include_parent: flag,
  include_children: flag,
  direction: Type.Optional(Type.Union([Type.Literal('up'), Type.Literal('down')])),
});

/** A part of a thread for another server (MSC2836: "Querying relationships over federation"). */
export function eventRelationshipsRoutes(
  app: FastifyInstance,
  { rooms, threads }: EventRelationshipsDeps,
): void {
  app.post<{ Body: Static<typeof body> }>(
    '/_matrix/federation/unstable/event_relationships',
    { schema: { body } },
    async (request, reply) => {
      const { event_id: eventId, ...query } = request.body;
      const origin = originOf(request);
      const { db, events } = rooms.parts;
      const anchor = await events.get(eventId);
      if (!anchor) throw notFound('Unknown event');
      const room = await roomOfMember(rooms, anchor.roomId, origin);
      const part = await threads.forServer(origin, room, anchor, boundedQuery(query));
      const texts = part.events.map((event) => {
        const summary = part.summaries.get(event.eventId);
        const unsigned = summary && { children: summary.children, children_hash: summary.hash };
        return JSON.stringify({ ...event.pdu, ...(unsigned && { unsigned }) });
      });
      const authEvents = [...new Set(part.events.flatMap((event) => event.authEvents))];
      const chain = await events.getMany(authEvents);
      for (const each of await authChain(db, events, authEvents)) chain.set(each.eventId, each);
      reply.type('application/json');
      return `{"events":${jsonList(texts)},"limited":${part.limited},"auth_chain":${jsonOf(chain.values())}}`;
    },
  );
}
