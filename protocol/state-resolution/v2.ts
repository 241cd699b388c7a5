import { visitAuthState } from '../auth-event-selection.ts';
import { type AuthView, type StateMap, stateKeyOf } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { type Conflicts, divide } from './conflicts.ts';
import { mainlineOrder } from './mainline.ts';
import { authEventIds, KnownEvents, type Resolution } from './needs.ts';
import { applyAllowed, PartialState } from './partial-state.ts';
import { powerOrder } from './power-order.ts';

/**
 * State resolution of room versions 2 to 11, and with `version.stateResolution` v2.1 (MSC4297) of 12. The numbers are
 * those of the spec's algorithm.
 * https://spec.matrix.org/v1.18/rooms/v12/#state-resolution
 */
export function* resolveV2(version: RoomVersion, states: readonly StateMap[]): Resolution<StateMap> {
  const conflicts = divide(states);
  const { unconflicted } = conflicts;
  if (conflicts.conflicted.size === 0) return unconflicted;
  const known = new KnownEvents();
  const full = yield* fullConflictedSet(version, conflicts, known);
  const state = new PartialState();
  const create = yield* loadSurroundings(version, unconflicted, full, known, state);
  const context = { known: known.map, create, version };

  // 1. and 2.
  const power = withAuthChains(full);
  applyAllowed(state, powerOrder(power.values(), context), context);
  // 3. and 4.
  const rest = [...full.values()].filter((event) => !power.has(event.eventId));
  applyAllowed(state, yield* mainlineOrder(rest, state.get('m.room.power_levels', ''), known), context);
  // 5.
  return state.under(unconflicted);
}

/** The full conflicted set, as far as its events are known. */
function* fullConflictedSet(
  version: RoomVersion,
  { unconflicted, conflicted, sets }: Conflicts,
  known: KnownEvents,
): Resolution<Map<string, AuthView>> {
  const ids = new Set(conflicted);
  const difference = yield { kind: 'auth-difference', sets, common: [...unconflicted.values()] };
  for (const id of difference.ids ?? []) ids.add(id);
  if (version.stateResolution === 'v2.1') {
    const subgraph = yield { kind: 'conflicted-subgraph', ids: [...conflicted] };
    for (const id of subgraph.ids ?? []) ids.add(id);
  }
  yield* known.load(ids);
  const full = new Map<string, AuthView>();
  for (const id of ids) {
    const event = known.get(id);
    if (event && event.stateKey !== undefined) full.set(id, event);
  }
  return full;
}

/**
 * Loads what the checks of the full conflicted set look at besides the set itself: its auth events and, in v2, which
 * starts from the unconflicted state, the part of that which authorises the set.
 *
 * @returns the create event, if it is not among the auth events
 */
function* loadSurroundings(
  version: RoomVersion,
  unconflicted: StateMap,
  full: ReadonlyMap<string, AuthView>,
  known: KnownEvents,
  state: PartialState,
): Resolution<AuthView | undefined> {
  const base = version.stateResolution === 'v2.1' ? [] : authorisingPart(version, unconflicted, full);
  const ids = new Set(base);
  for (const event of full.values()) for (const id of authEventIds(event)) ids.add(id);
  const createId = version.roomIdIsCreateHash ? createIdOf(unconflicted, full) : undefined;
  if (createId !== undefined) ids.add(createId);
  yield* known.load(ids);
  for (const id of base) {
    const event = known.get(id);
    if (event && !event.rejected) state.set(event);
  }
  const create = createId === undefined ? undefined : known.get(createId);
  return create?.rejected ? undefined : create;
}

function createIdOf(unconflicted: StateMap, full: ReadonlyMap<string, AuthView>): string | undefined {
  const inState = unconflicted.get(stateKeyOf('m.room.create', ''));
  if (inState !== undefined) return inState;
  const [event] = full.values();
  return event && `$${event.roomId.slice(1)}`;
}

/** Ids of those events of the unconflicted state that the auth rules ask for with the given events. */
function authorisingPart(
  version: RoomVersion,
  unconflicted: StateMap,
  events: ReadonlyMap<string, AuthView>,
): string[] {
  const ids: string[] = [];
  const seen = new Map<string, Set<string>>();
  const visit = (type: string, stateKey: string) => {
    const ofType = seen.get(type);
    if (ofType?.has(stateKey)) return;
    if (ofType) ofType.add(stateKey);
    else seen.set(type, new Set([stateKey]));
    const id = unconflicted.get(stateKeyOf(type, stateKey));
    if (id !== undefined) ids.push(id);
  };
  for (const event of events.values()) visitAuthState(event, version, visit);
  return ids;
}

/** The power events of a set, and what is reached from them by auth events without leaving the set. */
function withAuthChains(full: ReadonlyMap<string, AuthView>): Map<string, AuthView> {
  const found = new Map<string, AuthView>();
  const queue: AuthView[] = [];
  const add = (event: AuthView) => {
    if (found.has(event.eventId)) return;
    found.set(event.eventId, event);
    queue.push(event);
  };
  for (const event of full.values()) if (isPowerEvent(event)) add(event);
  for (let event = queue.pop(); event; event = queue.pop())
    for (const id of authEventIds(event)) {
      const auth = full.get(id);
      if (auth) add(auth);
    }
  return found;
}

/** Whether an event can take from somebody the ability to do something. */
function isPowerEvent({ type, sender, stateKey, content }: AuthView): boolean {
  switch (type) {
    case 'm.room.power_levels':
    case 'm.room.join_rules':
      return stateKey === '';
    case 'm.room.member':
      return (content.membership === 'leave' || content.membership === 'ban') && sender !== stateKey;
    default:
      return false;
  }
}
