import type { AuthView } from '../event.ts';

/**
 * What a resolution asks of whoever runs it. It does no I/O itself; each need is one batch, and there are a handful
 * of them however large the conflict.
 */
export type StateResNeed =
  /** The events with those ids, as far as they are known. */
  | { readonly kind: 'events'; readonly ids: readonly string[] }
  /**
   * The events that are in the auth chain of some of the sets, but not of all. All sets share the events of `common`
   * besides their own. The events of a set count as part of its chain.
   */
  | {
      readonly kind: 'auth-difference';
      readonly sets: ReadonlyArray<readonly string[]>;
      readonly common: readonly string[];
    }
  /** All events on paths along `auth_events` from one of those events to another. */
  | { readonly kind: 'conflicted-subgraph'; readonly ids: readonly string[] }
  /**
   * Those `m.room.power_levels` events, and all that are reached from them by going from one to the one among its
   * auth events. More power-level events do no harm.
   */
  | { readonly kind: 'power-levels-chain'; readonly ids: readonly string[] };

/** `events` for the kinds `events` and `power-levels-chain`, `ids` for the others. */
export interface StateResAnswer {
  readonly events?: ReadonlyMap<string, AuthView>;
  readonly ids?: Iterable<string>;
}

export type Resolution<T> = Generator<StateResNeed, T, StateResAnswer>;

/** Auth events of one event that are looked at. Event formats allow ten; what came before they did may have more. */
const MAX_AUTH_EVENTS = 20;

/** Ids of the auth events of an event. */
export function authEventIds(event: AuthView): readonly string[] {
  return event.authEvents.length > MAX_AUTH_EVENTS
    ? event.authEvents.slice(0, MAX_AUTH_EVENTS)
    : event.authEvents;
}

/** The `m.room.power_levels` event among the auth events, as far as they are known. */
export function powerLevelsOf(event: AuthView, known: ReadonlyMap<string, AuthView>): AuthView | undefined {
  for (const id of authEventIds(event)) {
    const auth = known.get(id);
    if (auth?.type === 'm.room.power_levels' && auth.stateKey === '') return auth;
  }
  return undefined;
}

/** The events asked for so far. */
export class KnownEvents {
  readonly #events = new Map<string, AuthView>();

  get map(): ReadonlyMap<string, AuthView> {
    return this.#events;
  }

  get(id: string): AuthView | undefined {
    return this.#events.get(id);
  }

  /** Asks for those of the events that are not known yet. */
  *load(ids: Iterable<string>): Resolution<void> {
    const missing = new Set<string>();
    for (const id of ids) if (!this.#events.has(id)) missing.add(id);
    if (missing.size > 0) this.#remember(yield { kind: 'events', ids: [...missing] });
  }

  *loadPowerLevelsChain(ids: Iterable<string>): Resolution<void> {
    this.#remember(yield { kind: 'power-levels-chain', ids: [...ids] });
  }

  #remember({ events }: StateResAnswer): void {
    for (const [id, event] of events ?? []) this.#events.set(id, event);
  }
}
