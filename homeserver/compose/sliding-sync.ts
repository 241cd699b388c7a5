import { slidingSyncRoutes } from '@trellis/client-api/sliding-sync/routes.ts';
import type { SlidingSources } from '@trellis/client-api/sliding-sync/view.ts';
import { threadSubscriptionRoutes } from '@trellis/client-api/thread-subscriptions.ts';
import { RoomFacts } from '@trellis/rooms/room-facts.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';

const UNSTABLE_FEATURES = {
  'org.matrix.simplified_msc3575': true,
  'org.matrix.msc4306': true,
  'org.matrix.msc4308': true,
};

/** Simplified sliding sync (MSC4186), and following threads (MSC4306, MSC4308). */
export function composeSlidingSync({ rooms }: Core) {
  const facts = new RoomFacts(rooms);
  return {
    unstableFeatures: UNSTABLE_FEATURES,
    clientRoutes(scope: FastifyInstance, parts: Omit<SlidingSources, 'facts'>): void {
      slidingSyncRoutes(scope, { ...parts, facts });
      threadSubscriptionRoutes(scope, { rooms, subscriptions: parts.threads });
    },
  };
}
