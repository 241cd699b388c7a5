import type { AuthView } from '../event.ts';
import { authEventIds } from './needs.ts';

/** Events that are at hand. */
export interface EventSource {
  event(id: string): AuthView | undefined;
}

/** The events of the sets and of their auth chains that are not in all of them; see `StateResNeed`. */
export function authDifference(
  sets: ReadonlyArray<readonly string[]>,
  common: readonly string[],
  source: EventSource,
): Set<string> {
  const shared = new Set<string>();
  walk(common, source, (id) => !shared.has(id) && !!shared.add(id));
  const counts = new Map<string, number>();
  for (const set of sets) {
    const seen = new Set<string>();
    walk(set, source, (id) => {
      if (shared.has(id) || seen.has(id)) return false;
      seen.add(id);
      counts.set(id, (counts.get(id) ?? 0) + 1);
      return true;
    });
  }
  const difference = new Set<string>();
  for (const [id, count] of counts) if (count < sets.length) difference.add(id);
  return difference;
}

/** The conflicted state subgraph (MSC4297): all events on paths between two of the given. */
export function conflictedSubgraph(ids: readonly string[], source: EventSource): Set<string> {
  // Ways down from the events first, remembering who led where; then back up from the events along those ways.
  const leadHere = new Map<string, string[]>();
  const seen = new Set<string>();
  walk(
    ids,
    source,
    (id) => !seen.has(id) && !!seen.add(id),
    (from, to) => {
      const sources = leadHere.get(to);
      if (sources) sources.push(from);
      else leadHere.set(to, [from]);
    },
  );
  const subgraph = new Set(ids);
  const queue = [...subgraph];
  for (let id = queue.pop(); id !== undefined; id = queue.pop())
    for (const from of leadHere.get(id) ?? [])
      if (!subgraph.has(from)) {
        subgraph.add(from);
        queue.push(from);
      }
  return subgraph;
}

/** Power-level events by the way from each to the one that authorised it. */
export function powerLevelsChain(ids: readonly string[], source: EventSource): Map<string, AuthView> {
  const chain = new Map<string, AuthView>();
  walk(ids, source, (id) => {
    const event = source.event(id);
    if (event?.type !== 'm.room.power_levels' || chain.has(id)) return false;
    chain.set(id, event);
    return true;
  });
  return chain;
}

/** Goes along `auth_events` from the given events, on from those that `enter` says yes to. */
function walk(
  ids: readonly string[],
  source: EventSource,
  enter: (id: string) => boolean,
  edge?: (from: string, to: string) => void,
): void {
  const queue = ids.filter(enter);
  for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
    const event = source.event(id);
    if (!event) continue;
    for (const auth of authEventIds(event)) {
      edge?.(id, auth);
      if (enter(auth)) queue.push(auth);
    }
  }
}
