import { invalidParam } from '@trellis/protocol/errors.ts';
import type { Hierarchies } from '@trellis/rooms/hierarchy.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { booleanOf, limitOf } from './query-values.ts';

const DEFAULT_LIMIT = 50;
const MAX_LIMIT = 100;
const MAX_DEPTH = 50;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ suggested_only: text, limit: text, max_depth: text, from: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** `GET /rooms/{roomId}/hierarchy` (spec: "Discovering rooms within spaces"). */
export function hierarchyRoutes(app: FastifyInstance, hierarchies: Hierarchies): void {
  app.get<{ Params: { roomId: string }; Querystring: Query }>(
    '/_matrix/client/v1/rooms/:roomId/hierarchy',
    { schema: { querystring } },
    async (request) => {
      const { query } = request;
      const { rooms, next } = await hierarchies.walk(request.params.roomId, requesterOf(request).userId, {
        suggestedOnly: booleanOf('suggested_only', query.suggested_only),
        maxDepth: depthOf(query.max_depth),
        limit: limitOf(query.limit, DEFAULT_LIMIT, MAX_LIMIT, 1),
        from: query.from,
      });
      return { rooms, ...(next !== undefined && { next_batch: next }) };
    },
  );
}

function depthOf(text: string | undefined): number {
  if (text === undefined) return MAX_DEPTH;
  if (!/^\d{1,9}$/.test(text)) throw invalidParam('max_depth must be a non-negative integer');
  return Math.min(Number(text), MAX_DEPTH);
}
