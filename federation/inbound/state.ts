import { forbidden, invalidParam, missingParam, notFound } from '@trellis/protocol/errors.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { authChainNids } from '@trellis/storage/auth-chains.ts';
import type { EventRef } from '@trellis/storage/state-snapshots.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { originOf } from './authentication.ts';
import { jsonList, roomOfMember } from './member-server.ts';

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

  const stateBefore = async (request: FastifyRequest<StateRoute>): Promise<EventRef[]> => {
    const { roomId } = request.params;
    const room = await roomOfMember(rooms, roomId, originOf(request));
    if (room.partial) throw forbidden('The members of the room are not known here yet');
    const { event_id: eventId } = request.query;
    if (eventId === undefined) throw missingParam('event_id is missing');
    if (typeof eventId !== 'string') throw invalidParam('There can be one event_id only');
    const event = await events.get(eventId);
    if (event?.roomId !== roomId || event.stateBefore === undefined) throw notFound('Unknown event');
    const state = await snapshots.load(event.stateBefore);
    return Array.from(state.entries(), ([, ref]) => ref);
  };

  app.get<StateRoute>('/_matrix/federation/v1/state/:roomId', async (request, reply) => {
    const state = await stateBefore(request);
    const nids = state.map(({ nid }) => nid);
    const [pdus, chain] = await Promise.all([
      events.jsonByNids(nids),
      authChainNids(db, nids).then((all) => events.jsonByNids(all)),
    ]);
    reply.type('application/json');
    return `{"auth_chain":${jsonList(chain)},"pdus":${jsonList(pdus)}}`;
  });

  app.get<StateRoute>('/_matrix/federation/v1/state_ids/:roomId', async (request) => {
    const state = await stateBefore(request);
    const chain = await authChainNids(
      db,
      state.map(({ nid }) => nid),
    );
    return {
      auth_chain_ids: await events.idsOf(chain),
      pdu_ids: state.map(({ eventId }) => eventId),
    };
  });
}
