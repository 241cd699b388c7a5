import { splitStateKey } from '@trellis/protocol/event.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import {
  isSelected,
  loadsLazily,
  memberKey,
  memberOf,
  type RoomConfig,
  roomConfig,
  type StateSelector,
  selectState,
} from './required-state.ts';
import type { SlidingView } from './view.ts';

export interface StateRequest {
  readonly roomId: string;
  readonly config: RoomConfig;
  /** What the client was last shown of the room, and the state as it knows it; left out when it knows nothing. */
  readonly known: { readonly config: RoomConfig | undefined; readonly state: Snapshot } | undefined;
  readonly state: Snapshot;
  /** Events left out before the timeline's may have changed members without the client needing to know. */
  readonly limited: boolean;
  readonly timeline: readonly StoredEvent[];
}

export interface StateNews {
  readonly refs: ReadonlyMap<string, EventRef>;
  /** State that is gone: type and state key. */
  readonly gone: ReadonlyArray<readonly [type: string, stateKey: string]>;
  /** Keys of all that changed since the client looked, asked for or not. */
  readonly changed: ReadonlySet<string>;
  /** What state the client has of the room after this. */
  readonly selectors: readonly StateSelector[];
}

/** Wider and narrower configs taking turns would otherwise add up. */
const MAX_SELECTORS = 8;

/** The state of a room that a client is to be told: what it asks for and does not have (MSC4186, `required_state`). */
export function stateNews(view: SlidingView, request: StateRequest): StateNews {
  const { config, known, state } = request;
  const { selectors } = config;
  const before = known?.config?.selectors ?? selectors;
  const changes = known ? state.changesSince(known.state) : new Map<string, EventRef | undefined>();
  const refs = new Map<string, EventRef>();
  const gone: Array<[string, string]> = [];
  if (!known) for (const [key, ref] of selectState(state, selectors)) refs.set(key, ref);
  else if (known.config && known.config.key !== config.key)
    for (const [key, ref] of selectState(state, selectors, before)) refs.set(key, ref);
  for (const [key, ref] of changes) {
    if (!isSelected(selectors, key)) continue;
    if (ref) refs.set(key, ref);
    else gone.push(splitStateKey(key));
  }
  if (loadsLazily(selectors)) addLazyMembers(view, request, changes, refs);
  return {
    refs,
    gone,
    changed: new Set(changes.keys()),
    selectors: selectorsAfter(before, selectors, changes),
  };
}

/** The members whom the timeline shows, and those who changed as long as nothing was left out (MSC4186, "Lazy loaded memberships"). */
function addLazyMembers(
  { connection, changes: answer }: SlidingView,
  { roomId, known, state, limited, timeline }: StateRequest,
  changes: ReadonlyMap<string, EventRef | undefined>,
  refs: Map<string, EventRef>,
): void {
  const changed = new Set<string>();
  for (const key of changes.keys()) {
    const member = memberOf(key);
    if (member !== undefined) changed.add(member);
  }
  const shown = new Set<string>();
  for (const { type, sender, stateKey } of timeline) {
    shown.add(sender);
    if (type === 'm.room.member' && stateKey !== undefined) shown.add(stateKey);
  }
  const needed = known && !limited ? shown.union(changed) : shown;
  for (const member of needed) {
    if (known && !changed.has(member) && connection.gotMember(roomId, member)) continue;
    const ref = state.getKey(memberKey(member));
    if (ref) refs.set(memberKey(member), ref);
  }
  answer.members.set(roomId, { got: needed, outdated: changed.difference(needed) });
}

/**
 * What is asked for now; what was asked for before as well, as long as nothing of that has changed meanwhile, so that
 * a client which goes back to asking for more need not get it again.
 */
function selectorsAfter(
  before: readonly StateSelector[],
  now: readonly StateSelector[],
  changes: ReadonlyMap<string, unknown>,
): readonly StateSelector[] {
  if (before === now) return now;
  const both = roomConfig(0, [...now, ...before]).selectors;
  if (both.length === now.length) return now;
  if (both.length > MAX_SELECTORS) return now;
  for (const key of changes.keys()) if (isSelected(before, key) && !isSelected(now, key)) return now;
  return both;
}
