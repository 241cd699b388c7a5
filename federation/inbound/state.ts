import { invalidParam, missingParam, notFound } from '@trellis/protocol/errors.ts';
import { authChain } from '@trellis/rooms/auth-chain.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { originOf } from './authentication.ts';
import { jsonOf, roomOfMember } from './member-server.ts';

export interface StateRoutesDeps {
  readonly rooms: Rooms;
}

interface StateRoute {
  Params: { roomId: string };
  Querystring: { event_id?: string | string[] };
}

/**
 * The state before an event.
 * https://spec.matrix.org/v1.18/server-server-api/#get_matrixfederationv1stateroomid
 */
export function stateRoutes(app: FastifyInstance, { rooms }: StateRoutesDeps): void {
  const { db, events, snapshots } = rooms.parts;

  const stateBefore = async (request: FastifyRequest<StateRoute>): Promise<string[]> => {
    const { roomId } = request.params;
    await roomOfMember(rooms, roomId, originOf(request));
    const { event_id: eventId } = request.query;
    if (eventId === undefined) throw missingParam('event_id is missing');
    if (typeof eventId !== 'string') throw invalidParam('There can be one event_id only');
    const event = await events.get(eventId);
    if (event?.roomId !== roomId || event.stateBefore === undefined) throw notFound('Unknown event');
    const state = await snapshots.load(event.stateBefore);
    return Array.from(state.entries(), ([, ref]) => ref.eventId);
  };

  app.get<StateRoute>('/_matrix/federation/v1/state/:roomId', async (request, reply) => {
    const ids = await stateBefore(request);
    const [state, chain] = await Promise.all([events.getMany(ids), authChain(db, events, ids)]);
    reply.type('application/json');
    return `{"auth_chain":${jsonOf(chain)},"pdus":${jsonOf(state.values())}}`;
  });

  app.get<StateRoute>('/_matrix/federation/v1/state_ids/:roomId', async (request) => {
    const ids = await stateBefore(request);
    const chain = await authChain(db, events, ids);
    return { auth_chain_ids: chain.map(({ eventId }) => eventId), pdu_ids: ids };
  });
}
