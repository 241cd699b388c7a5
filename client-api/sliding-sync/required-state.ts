import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';

/** Matches state by type and state key; what is left out matches everything. */
export interface StatePattern {
  readonly type?: string | undefined;
  readonly stateKey?: string | undefined;
}

const MEMBER = 'm.room.member';

/** Which state of its rooms a list or a subscription asks for (MSC4186, `required_state`). */
export class StateSelector {
  readonly lazyMembers: boolean;
  /** The same for selectors that select the same. */
  readonly key: string;
  /** Exact pairs, found without going through a room's state. */
  readonly #exact = new Set<string>();
  readonly #patterns: StatePattern[] = [];
  readonly #excludes: readonly StatePattern[];

  constructor(
    include: readonly StatePattern[],
    exclude: readonly StatePattern[] = [],
    lazyMembers: boolean = false,
  ) {
    this.lazyMembers = lazyMembers;
    this.#excludes = exclude;
    for (const { type, stateKey } of include)
      if (type !== undefined && stateKey !== undefined) this.#exact.add(stateKeyOf(type, stateKey));
      else this.#patterns.push({ type, stateKey });
    const sorted = (patterns: readonly StatePattern[]) =>
      patterns.map(({ type, stateKey }) => JSON.stringify([type, stateKey])).sort();
    this.key = JSON.stringify([
      [...this.#exact].sort(),
      sorted(this.#patterns),
      sorted(exclude),
      lazyMembers,
    ]);
  }

  /** The room's whole state has to be looked through. */
  get hasPatterns(): boolean {
    return this.#patterns.length > 0;
  }

  get exact(): ReadonlySet<string> {
    return this.#exact;
  }

  matches(key: string): boolean {
    if (!this.#exact.has(key) && this.#patterns.length === 0) return false;
    const [type, stateKey] = splitStateKey(key);
    if (this.#excludes.some((pattern) => holds(pattern, type, stateKey))) return false;
    if (this.#exact.has(key)) return true;
    // With lazy loading only those members who matter, and those who are asked for by name.
    if (this.lazyMembers && type === MEMBER) return false;
    return this.#patterns.some((pattern) => holds(pattern, type, stateKey));
  }
}

function holds(pattern: StatePattern, type: string, stateKey: string): boolean {
  return (
    (pattern.type === undefined || pattern.type === type) &&
    (pattern.stateKey === undefined || pattern.stateKey === stateKey)
  );
}

/** What is to be shown of a room: all that any of the lists and subscriptions that it matches asks for. */
export interface RoomConfig {
  readonly timelineLimit: number;
  readonly selectors: readonly StateSelector[];
  readonly key: string;
}

export function roomConfig(timelineLimit: number, selectors: readonly StateSelector[]): RoomConfig {
  const distinct = [...new Map(selectors.map((selector) => [selector.key, selector])).values()];
  const key = `${timelineLimit} ${distinct
    .map((selector) => selector.key)
    .sort()
    .join(' ')}`;
  return { timelineLimit, selectors: distinct, key };
}

export function combined(configs: readonly RoomConfig[]): RoomConfig {
  if (configs.length === 1) return configs[0]!;
  return roomConfig(
    Math.max(...configs.map(({ timelineLimit }) => timelineLimit)),
    configs.flatMap(({ selectors }) => selectors),
  );
}

export function isSelected(selectors: readonly StateSelector[], key: string): boolean {
  return selectors.some((selector) => selector.matches(key));
}

export function loadsLazily(selectors: readonly StateSelector[]): boolean {
  return selectors.some(({ lazyMembers }) => lazyMembers);
}

/** What of a state is selected, and not by `known`, which the client has already. */
export function selectState(
  state: Snapshot,
  selectors: readonly StateSelector[],
  known: readonly StateSelector[] = [],
): Map<string, EventRef> {
  const refs = new Map<string, EventRef>();
  const isNew = (key: string) => isSelected(selectors, key) && !isSelected(known, key);
  if (selectors.some(({ hasPatterns }) => hasPatterns)) {
    for (const [key, ref] of state.entries()) if (isNew(key)) refs.set(key, ref);
    return refs;
  }
  for (const { exact } of selectors)
    for (const key of exact) {
      const ref = state.getKey(key);
      if (ref && isNew(key)) refs.set(key, ref);
    }
  return refs;
}

export function memberKey(userId: string): string {
  return stateKeyOf(MEMBER, userId);
}

/** The user whose membership the key is of. */
export function memberOf(key: string): string | undefined {
  const [type, stateKey] = splitStateKey(key);
  return type === MEMBER ? stateKey : undefined;
}
