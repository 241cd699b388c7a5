import { delayedEventRoutes } from '@trellis/client-api/delayed-events.ts';
import { DelayedEvents } from '@trellis/rooms/delayed-events.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import { DelayedEventStore } from '@trellis/storage/delayed-events.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { Deactivation } from '@trellis/users/deactivation.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';

export interface DelayedEventsArea {
  readonly delayedEvents: DelayedEvents;
  readonly unstableFeatures: Readonly<Record<string, boolean>>;
  clientRoutes(scope: FastifyInstance): void;
}

/** Events that are sent later, also when the server was down at their time. */
export function composeDelayedEvents(
  core: Core,
  parts: {
    readonly membership: Membership;
    readonly accounts: Accounts;
    readonly deactivation: Deactivation;
  },
): DelayedEventsArea {
  const { config, db, log, rooms } = core;
  const { max_event_delay_ms: maxDelay, max_delayed_events: maxScheduled } = config.rooms;
  const delayedEvents = new DelayedEvents({
    rooms,
    membership: parts.membership,
    store: new DelayedEventStore(db),
    async mayAct(userId) {
      const account = await parts.accounts.get(userId);
      return account !== undefined && !account.deactivated && !account.suspended && !account.locked;
    },
    maxDelay,
    maxScheduled,
    onFailure: (err, event) => {
      const about = { err, delayId: event?.delayId, roomId: event?.roomId };
      log.warn(about, 'sending delayed events failed');
    },
  });
  parts.deactivation.onDeactivated((userId) => delayedEvents.erase(userId));
  core.onReady(() => delayedEvents.start());
  core.onClose(() => delayedEvents.close());
  return {
    delayedEvents,
    unstableFeatures: { 'org.matrix.msc4140': maxDelay > 0 },
    clientRoutes: (scope) => delayedEventRoutes(scope, delayedEvents),
  };
}
