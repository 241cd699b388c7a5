import type { AuthView, StateMap } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { authDifference, conflictedSubgraph, type EventSource, powerLevelsChain } from './auth-graph.ts';
import { powerLevelsOf, type Resolution, type StateResAnswer, type StateResNeed } from './needs.ts';
import { resolveV1 } from './v1.ts';
import { resolveV2 } from './v2.ts';

export type { EventSource } from './auth-graph.ts';
export type { Resolution, StateResAnswer, StateResNeed } from './needs.ts';

/**
 * Resolves states to one, by the algorithm of the room version. A generator: it yields what it needs to know, and is
 * handed the answer by `next`; `resolveWith` and `resolveAsync` run it.
 */
export function* resolveState(version: RoomVersion, states: readonly StateMap[]): Resolution<StateMap> {
  const [first, ...others] = states;
  if (!first) return new Map();
  if (others.every((state) => state === first)) return new Map(first);
  return yield* version.stateResolution === 'v1' ? resolveV1(version, states) : resolveV2(version, states);
}

/** Resolves states whose events, auth chains included, are all in memory. */
export function resolveWith(
  version: RoomVersion,
  states: readonly StateMap[],
  source: EventSource,
): StateMap {
  const resolution = resolveState(version, states);
  for (let step = resolution.next(); ; ) {
    if (step.done) return step.value;
    step = resolution.next(answerFrom(source, step.value));
  }
}

function answerFrom(source: EventSource, need: StateResNeed): StateResAnswer {
  switch (need.kind) {
    case 'events':
      return { events: pick(need.ids, (id) => source.event(id)) };
    case 'auth-difference':
      return { ids: authDifference(need.sets, need.common, source) };
    case 'conflicted-subgraph':
      return { ids: conflictedSubgraph(need.ids, source) };
    case 'power-levels-chain':
      return { events: powerLevelsChain(need.ids, source) };
  }
}

function pick(ids: readonly string[], get: (id: string) => AuthView | undefined): Map<string, AuthView> {
  const events = new Map<string, AuthView>();
  for (const id of ids) {
    const event = get(id);
    if (event) events.set(id, event);
  }
  return events;
}

/** Where `resolveAsync` reads from. What the sets and ids mean stands with `StateResNeed`. */
export interface StateResLoader {
  /** Those of the events that are known. */
  events(ids: readonly string[]): Promise<ReadonlyMap<string, AuthView>>;
  authDifference(
    sets: ReadonlyArray<readonly string[]>,
    common: readonly string[],
  ): Promise<Iterable<string>>;
  conflictedSubgraph(ids: readonly string[]): Promise<Iterable<string>>;
  /** Without it the chain is followed step by step by `events`. */
  powerLevelsChain?(ids: readonly string[]): Promise<ReadonlyMap<string, AuthView>>;
}

/** Resolves states whose events are elsewhere, in about five calls of the loader. */
export async function resolveAsync(
  version: RoomVersion,
  states: readonly StateMap[],
  loader: StateResLoader,
): Promise<StateMap> {
  const resolution = resolveState(version, states);
  for (let step = resolution.next(); ; ) {
    if (step.done) return step.value;
    step = resolution.next(await load(loader, step.value));
  }
}

async function load(loader: StateResLoader, need: StateResNeed): Promise<StateResAnswer> {
  switch (need.kind) {
    case 'events':
      return { events: await loader.events(need.ids) };
    case 'auth-difference':
      return { ids: await loader.authDifference(need.sets, need.common) };
    case 'conflicted-subgraph':
      return { ids: await loader.conflictedSubgraph(need.ids) };
    case 'power-levels-chain':
      return { events: await (loader.powerLevelsChain?.(need.ids) ?? followPowerLevels(loader, need.ids)) };
  }
}

async function followPowerLevels(
  loader: StateResLoader,
  ids: readonly string[],
): Promise<Map<string, AuthView>> {
  const known = new Map<string, AuthView>();
  const asked = new Set<string>();
  let wanted = [...ids];
  while (wanted.length > 0) {
    for (const id of wanted) asked.add(id);
    const loaded = await loader.events(wanted);
    for (const [id, event] of loaded) known.set(id, event);
    // Which of the auth events are power levels shows when they are there; only those are followed.
    const next = new Set<string>();
    for (const event of loaded.values())
      if (event.type === 'm.room.power_levels' && !powerLevelsOf(event, known))
        for (const id of event.authEvents) if (!asked.has(id)) next.add(id);
    wanted = [...next];
  }
  return known;
}
