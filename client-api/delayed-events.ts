import { type DelayedEvents, delayedEventJson } from '@trellis/rooms/delayed-events.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

const BASE = '/_matrix/client/unstable/org.matrix.msc4140/delayed_events';
const ACTIONS = ['cancel', 'restart', 'send'] as const;
type Action = (typeof ACTIONS)[number];

/**
 * Managing delayed events (MSC4140). Whoever has an event's id may do so without being logged in: users hand it to
 * services that watch over their calls.
 */
export function delayedEventRoutes(app: FastifyInstance, delayed: DelayedEvents): void {
  app.get(BASE, { config: { guests: true } }, async (request) => ({
    delayed_events: (await delayed.scheduled(requesterOf(request).userId)).map(delayedEventJson),
  }));

  for (const action of ACTIONS)
    app.post<{ Params: { delayId: string } }>(
      `${BASE}/:delayId/${action}`,
      { config: { auth: 'none' } },
      async (request) => {
        await delayed[action](request.params.delayId);
        return {};
      },
    );

  // As it was before each action had a path of its own.
  app.post<{ Params: { delayId: string }; Body: { action: Action } }>(
    `${BASE}/:delayId`,
    { schema: { body: Type.Object({ action: Type.Enum([...ACTIONS]) }) }, config: { auth: 'none' } },
    async (request) => {
      await delayed[request.body.action](request.params.delayId);
      return {};
    },
  );
}
