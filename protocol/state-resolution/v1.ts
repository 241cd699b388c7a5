import { hash } from 'node:crypto';
import { visitAuthState } from '../auth-event-selection.ts';
import type { AuthState } from '../auth-rules/auth-state.ts';
import { authorise } from '../auth-rules/index.ts';
import { type AuthView, type StateMap, splitStateKey, stateKeyOf } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { KnownEvents, type Resolution } from './needs.ts';
import { PartialState } from './partial-state.ts';

/** Types that affect authorisation, in the order in which they are resolved. */
const AUTH_TYPES = ['m.room.power_levels', 'm.room.join_rules', 'm.room.member'];

/**
 * State resolution of room version 1.
 * https://spec.matrix.org/v1.18/rooms/v1/#state-resolution
 */
export function* resolveV1(version: RoomVersion, states: readonly StateMap[]): Resolution<StateMap> {
  const { agreed, conflicts } = divide(states);
  if (conflicts.size === 0) return agreed;
  const known = new KnownEvents();
  yield* known.load([...conflicts.values()].flatMap((ids) => [...ids]));
  const base = new Set<string>();
  for (const event of known.map.values())
    visitAuthState(event, version, (type, stateKey) => {
      const id = agreed.get(stateKeyOf(type, stateKey));
      if (id !== undefined) base.add(id);
    });
  yield* known.load(base);
  const state = new PartialState();
  for (const id of base) {
    const event = known.get(id);
    if (event && !event.rejected) state.set(event);
  }

  const candidates = [...conflicts].map(([key, ids]) => {
    const events = [...ids].map((id) => known.get(id)).filter((event) => event !== undefined);
    return { type: splitStateKey(key)[0], events: sorted(events.filter((event) => !event.rejected)) };
  });
  for (const type of AUTH_TYPES) {
    const ofType = candidates.filter((candidate) => candidate.type === type);
    // Each conflict for itself, on the state before the pass: the spec gives state keys no order.
    const winners = ofType.map(({ events }) => winnerOf(events, state, version));
    for (const winner of winners) if (winner) state.set(winner);
  }
  // No other type authorises anything, so these don't depend on each other.
  for (const { type, events } of candidates) {
    if (AUTH_TYPES.includes(type)) continue;
    const winner = events.findLast((event) => authorise(event, state, version) === undefined);
    if (winner) state.set(winner);
  }
  return state.under(agreed);
}

/** The first event, or the last one after it for as long as each is allowed by the one before. */
function winnerOf(
  [first, ...others]: readonly AuthView[],
  state: PartialState,
  version: RoomVersion,
): AuthView | undefined {
  let winner = first;
  const withWinner: AuthState = {
    get: (type, stateKey) =>
      type === winner?.type && stateKey === winner.stateKey ? winner : state.get(type, stateKey),
  };
  for (const event of others) {
    if (authorise(event, withWinner, version) !== undefined) break;
    winner = event;
  }
  return winner;
}

/** By ascending depth, then descending SHA-1 of the event id. */
function sorted(events: readonly AuthView[]): AuthView[] {
  return events
    .map((event) => ({ event, digest: hash('sha1', event.eventId) }))
    .sort((a, b) => a.event.depth - b.event.depth || (a.digest > b.digest ? -1 : 1))
    .map(({ event }) => event);
}

/** In room version 1 a key that some states lack is no conflict. */
function divide(states: readonly StateMap[]): { agreed: StateMap; conflicts: Map<string, Set<string>> } {
  const agreed: StateMap = new Map();
  const conflicts = new Map<string, Set<string>>();
  for (const state of states)
    for (const [key, eventId] of state) {
      const before = agreed.get(key);
      if (before === undefined || before === eventId) agreed.set(key, eventId);
      else conflicts.set(key, (conflicts.get(key) ?? new Set([before])).add(eventId));
    }
  for (const key of conflicts.keys()) agreed.delete(key);
  return { agreed, conflicts };
}
