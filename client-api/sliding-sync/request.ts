import { invalidParam } from '@trellis/protocol/errors.ts';
import { type RoomConfig, roomConfig, type StatePattern, StateSelector } from './required-state.ts';
import type { ExtensionsBody, FilterBody, OlderSyncBody, SyncBody } from './schemas.ts';

/** Which of its two forms a client speaks: the one that was merged, or the one before it. */
export type Dialect = 'v4' | 'msc3575';

export interface ListRequest {
  readonly key: string;
  /** Both ends inclusive; `undefined`: all rooms that the filters let pass. */
  readonly ranges: ReadonlyArray<readonly [number, number]> | undefined;
  readonly filters: FilterBody;
  readonly config: RoomConfig;
}

/** A request of either dialect. */
export interface SlidingRequest {
  readonly dialect: Dialect;
  readonly connId: string;
  readonly txnId: string | undefined;
  readonly pos: string | undefined;
  readonly timeout: number;
  readonly presence: 'online' | 'unavailable' | 'offline';
  readonly lists: readonly ListRequest[];
  readonly subscriptions: ReadonlyMap<string, RoomConfig>;
  readonly extensions: ExtensionsBody;
}

export interface SlidingQuery {
  readonly pos?: string;
  readonly timeout?: string;
  readonly set_presence?: string;
}

const MAX_LISTS = 100;
const MAX_LIST_KEY = 64;
const MAX_SUBSCRIPTIONS = { v4: 100, msc3575: 1_000 } as const;
const MAX_TIMEOUT = 5 * 60_000;
const MAX_TIMELINE = 100;
/** Where the older dialect left it to the server. */
const DEFAULT_TIMELINE = 10;

/** @throws M_INVALID_PARAM */
export function syncRequest(body: SyncBody): SlidingRequest {
  const lists = Object.entries(body.lists ?? {}).map(([key, list]): ListRequest => {
    const { range, filters = {} } = list;
    return {
      key,
      ranges: range && [rangeOf(range)],
      filters,
      config: configOf(list.timeline_limit, selectorOf(list.required_state)),
    };
  });
  const subscriptions = Object.entries(body.room_subscriptions ?? {}).map(
    ([roomId, room]) => [roomId, configOf(room.timeline_limit, selectorOf(room.required_state))] as const,
  );
  return checked({ ...common(body, {}), dialect: 'v4', lists, subscriptions: new Map(subscriptions) });
}

/** @throws M_INVALID_PARAM */
export function olderSyncRequest(body: OlderSyncBody, query: SlidingQuery, userId: string): SlidingRequest {
  const config = ({ timeline_limit = DEFAULT_TIMELINE, required_state = [] }: OlderRoom) =>
    configOf(timeline_limit, olderSelector(required_state, userId));
  const lists = Object.entries(body.lists ?? {}).map(([key, list]): ListRequest => {
    const { ranges = [], slow_get_all_rooms: all, filters = {} } = list;
    return {
      key,
      ranges: all || ranges.length === 0 ? undefined : ranges.map(rangeOf),
      filters,
      config: config(list),
    };
  });
  const subscriptions = Object.entries(body.room_subscriptions ?? {}).map(
    ([roomId, room]) => [roomId, config(room)] as const,
  );
  return checked({
    ...common(body, query),
    dialect: 'msc3575',
    lists,
    subscriptions: new Map(subscriptions),
  });
}

interface OlderRoom {
  readonly timeline_limit?: number;
  readonly required_state?: string[][];
}

function common(body: SyncBody | OlderSyncBody, query: SlidingQuery) {
  const pos = query.pos ?? body.pos;
  return {
    connId: body.conn_id ?? '',
    txnId: body.txn_id,
    pos: pos === '' ? undefined : pos,
    timeout: timeoutOf(query.timeout === undefined ? body.timeout : Number(query.timeout)),
    presence: presenceOf(query.set_presence ?? body.set_presence),
    extensions: body.extensions ?? {},
  };
}

function checked(request: SlidingRequest): SlidingRequest {
  const { dialect, lists, subscriptions } = request;
  if (lists.length > MAX_LISTS) throw invalidParam(`There can be at most ${MAX_LISTS} lists`);
  if (lists.some(({ key }) => key === '' || key.length > MAX_LIST_KEY))
    throw invalidParam(`Names of lists have 1 to ${MAX_LIST_KEY} characters`);
  if (subscriptions.size > MAX_SUBSCRIPTIONS[dialect])
    throw invalidParam(`There can be at most ${MAX_SUBSCRIPTIONS[dialect]} room subscriptions`);
  return request;
}

function configOf(timelineLimit: number, selector: StateSelector): RoomConfig {
  return roomConfig(Math.min(timelineLimit, MAX_TIMELINE), [selector]);
}

interface Elements {
  readonly include?: ReadonlyArray<{ readonly type?: string; readonly state_key?: string }>;
  readonly exclude?: Elements['include'];
  readonly lazy_members?: boolean;
}

function selectorOf({ include = [], exclude = [], lazy_members: lazy = false }: Elements): StateSelector {
  const pattern = ({ type, state_key: stateKey }: { type?: string; state_key?: string }) => ({
    type,
    stateKey,
  });
  return new StateSelector(include.map(pattern), exclude.map(pattern), lazy);
}

/** `*` stands for everything, `$ME` for the user, and `$LAZY` for the members who matter. */
function olderSelector(pairs: readonly string[][], userId: string): StateSelector {
  const include: StatePattern[] = [];
  let lazy = false;
  for (const [type = '', stateKey = ''] of pairs) {
    if (stateKey === '$LAZY') {
      lazy ||= type === 'm.room.member';
      continue;
    }
    const key = stateKey === '$ME' ? userId : stateKey;
    include.push({ type: type === '*' ? undefined : type, stateKey: key === '*' ? undefined : key });
  }
  return new StateSelector(include, [], lazy);
}

function rangeOf(range: readonly number[]): [number, number] {
  const [first = 0, last = 0] = range;
  if (last < first) throw invalidParam('A range must not end before it begins');
  return [first, last];
}

function timeoutOf(timeout: number | undefined): number {
  if (timeout === undefined) return 0;
  if (!Number.isSafeInteger(timeout) || timeout < 0)
    throw invalidParam('timeout is not a number of milliseconds');
  return Math.min(timeout, MAX_TIMEOUT);
}

function presenceOf(text: string | undefined): SlidingRequest['presence'] {
  if (text === undefined) return 'online';
  if (text === 'online' || text === 'unavailable' || text === 'offline') return text;
  throw invalidParam('set_presence is not one of online, unavailable, offline');
}
