import type { StateMap } from '../event.ts';

export interface Conflicts {
  /** The unconflicted state map: keys that all states have with the same event. */
  readonly unconflicted: StateMap;
  /** The conflicted state set. */
  readonly conflicted: Set<string>;
  /** The part of each state that is in the conflicted state set. */
  readonly sets: string[][];
}

/** Divides states into what they agree on and what not (room version 2, "State resolution", definitions). */
export function divide(states: readonly StateMap[]): Conflicts {
  const unconflicted: StateMap = new Map();
  const [first, ...others] = states;
  const sets: string[][] = states.map(() => []);
  next: for (const [key, eventId] of first ?? []) {
    for (const other of others) if (other.get(key) !== eventId) continue next;
    unconflicted.set(key, eventId);
  }
  for (const [i, state] of states.entries()) {
    if (state.size === unconflicted.size) continue;
    for (const [key, eventId] of state) if (!unconflicted.has(key)) sets[i]!.push(eventId);
  }
  return { unconflicted, conflicted: new Set(sets.flat()), sets };
}
