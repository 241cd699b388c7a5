/** What is asked of a thread, by clients and servers alike (MSC2836: "Querying relationships"). */
export interface ThreadQuery {
  readonly max_depth: number;
  readonly max_breadth: number;
  readonly limit: number;
  readonly depth_first: boolean;
  readonly recent_first: boolean;
  readonly include_parent: boolean;
  readonly include_children: boolean;
  readonly direction: 'up' | 'down';
}

const DEFAULTS: ThreadQuery = {
  max_depth: 3,
  max_breadth: 10,
  limit: 100,
  depth_first: false,
  recent_first: true,
  include_parent: false,
  include_children: false,
  direction: 'down',
};

/** Events in one answer at the most. */
const MAX_THREAD_EVENTS = 100;
/** Children of one event that are looked at, where the query sets no bound. */
const MAX_CHILDREN = 1000;
/** Hops from the anchor, where the query sets no bound. */
const MAX_HOPS = 1000;

/** A query with all its bounds: a negative one means none, which the server does not grant. */
export function boundedQuery(query: Partial<ThreadQuery>): ThreadQuery {
  const whole = { ...DEFAULTS, ...query };
  return {
    ...whole,
    max_depth: bound(whole.max_depth, MAX_HOPS),
    max_breadth: bound(whole.max_breadth, MAX_CHILDREN),
    limit: bound(whole.limit, MAX_THREAD_EVENTS),
  };
}

function bound(value: number, most: number): number {
  return value < 0 ? most : Math.min(value, most);
}
