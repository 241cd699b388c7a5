import { authorise } from '../auth-rules/index.ts';
import { type AuthView, type StateMap, stateKeyOf } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { authEventIds } from './needs.ts';

/** A state under resolution. */
export class PartialState {
  // By type and then by state key: no strings need to be put together for a look.
  readonly #types = new Map<string, Map<string, AuthView>>();

  get(type: string, stateKey: string): AuthView | undefined {
    return this.#types.get(type)?.get(stateKey);
  }

  /** Sets a state event; what is no state event is ignored. */
  set(event: AuthView): void {
    if (event.stateKey === undefined) return;
    const ofType = this.#types.get(event.type);
    if (ofType) ofType.set(event.stateKey, event);
    else this.#types.set(event.type, new Map([[event.stateKey, event]]));
  }

  /** The state map `base`, and for keys that it has not what stands here. */
  under(base: StateMap): StateMap {
    const result: StateMap = new Map(base);
    for (const [type, ofType] of this.#types)
      for (const [stateKey, event] of ofType) {
        const key = stateKeyOf(type, stateKey);
        if (!base.has(key)) result.set(key, event.eventId);
      }
    return result;
  }
}

/**
 * The iterative auth checks algorithm. Where the state lacks an event that the rules ask for, the one among the
 * event's own auth events counts. Rejected events neither enter the state nor authorise others.
 *
 * @param create the room's create event where it is not among the auth events (since room version 12)
 */
export function applyAllowed(
  state: PartialState,
  ordered: Iterable<AuthView>,
  {
    known,
    create,
    version,
  }: { known: ReadonlyMap<string, AuthView>; create: AuthView | undefined; version: RoomVersion },
): void {
  for (const event of ordered) {
    if (event.rejected) continue;
    let own: AuthView[] | undefined;
    const lookUp = (type: string, stateKey: string) => {
      const current = state.get(type, stateKey);
      if (current) return current;
      own ??= usableAuthEvents(event, known);
      for (const auth of own) if (auth.type === type && auth.stateKey === stateKey) return auth;
      return create && type === 'm.room.create' && stateKey === '' ? create : undefined;
    };
    if (authorise(event, { get: lookUp }, version) === undefined) state.set(event);
  }
}

function usableAuthEvents(event: AuthView, known: ReadonlyMap<string, AuthView>): AuthView[] {
  const own: AuthView[] = [];
  for (const id of authEventIds(event)) {
    const auth = known.get(id);
    if (auth && !auth.rejected) own.push(auth);
  }
  return own;
}
