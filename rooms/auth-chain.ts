import type { StateResLoader } from '@trellis/protocol/state-resolution/index.ts';
import { indexAuthChains } from '@trellis/storage/auth-chain-writer.ts';
import {
  authChainNids,
  authDifferenceNids,
  conflictedSubgraphNids,
  powerLevelsChainNids,
} from '@trellis/storage/auth-chains.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { IndexStateEvents } from '@trellis/storage/event-writer.ts';
import type { EventStore } from '@trellis/storage/events.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** Keeps the index of auth chains; for the event writer. */
export const indexStateEvents: IndexStateEvents = (tx, events) =>
  indexAuthChains(
    tx,
    events.map(({ event }) => event),
  );

/** The events of the auth chains of some events: all that is reached from these by `auth_events`. */
export async function authChain(
  db: Queryable,
  events: EventStore,
  eventIds: readonly string[],
): Promise<StoredEvent[]> {
  const nids = await events.nidsOf(eventIds);
  return events.byNids(await authChainNids(db, [...nids.values()]));
}

/**
 * What state resolution reads, from the database. The events of the states to be resolved have to be committed: the
 * index of auth chains knows no others.
 */
export function stateResLoader(db: Queryable, events: EventStore): StateResLoader {
  const nidsOf = async (ids: readonly string[]) => [...(await events.nidsOf(ids)).values()];
  // The resolution asks for the events next, and finds them in the cache then.
  const idsOf = async (nids: readonly number[]) =>
    nids.length === 0 ? [] : (await events.byNids(nids)).map(({ eventId }) => eventId);
  return {
    events: (ids) => events.getMany(ids),
    async authDifference(sets, common) {
      const nids = await events.nidsOf(sets.flat());
      const commonIds = new Set(common);
      const difference = await authDifferenceNids(
        db,
        sets.map((set) => set.map((id) => nids.get(id)).filter((nid) => nid !== undefined)),
        { has: (id) => commonIds.has(id), nids: () => nidsOf(common) },
      );
      return idsOf(difference);
    },
    async conflictedSubgraph(ids) {
      return idsOf(await conflictedSubgraphNids(db, await nidsOf(ids)));
    },
    async powerLevelsChain(ids) {
      const chain = await events.byNids(await powerLevelsChainNids(db, await nidsOf(ids)));
      return new Map(chain.map((event) => [event.eventId, event]));
    },
  };
}
