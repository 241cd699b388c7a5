import type { Filter } from '@trellis/protocol/filters.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { LazyMembers } from './lazy-members.ts';
import type { AccountDataItem, SyncSources } from './sources.ts';

/** One sync's view: who asks, for what interval of the streams, and how. */
export interface SyncView {
  readonly sources: SyncSources;
  readonly userId: string;
  readonly deviceId: string;
  readonly filter: Filter;
  readonly lazy: LazyMembers;
  /** The state at the end of the timeline instead of the one at its start (`use_state_after`, MSC4222). */
  readonly stateAfter: 'state' | 'state_after' | 'org.matrix.msc4222.state_after';
  /** Positions of the events, and of receipts, that the client has; `undefined` where it has nothing. */
  readonly eventsFrom: number | undefined;
  readonly eventsTo: number;
  readonly receiptsFrom: number | undefined;
  readonly receiptsTo: number;
  /** Users whose messages and invites the user does not want to see (spec: "Ignoring users"). */
  readonly ignored: ReadonlySet<string>;
  /** All state, whatever the client has (`full_state`). */
  readonly fullState: boolean;
  /** Aggregations of what relates to the events, as JSON text by event id. */
  readonly relations: (
    events: readonly StoredEvent[],
    userId: string,
  ) => Promise<ReadonlyMap<string, string>>;
}

/** What is new in a room the user is in, besides events. */
export interface JoinedNews {
  readonly accountData: readonly AccountDataItem[];
  readonly typing: boolean;
  readonly receipts: boolean;
}

/** What the moment of an answer decides. */
type Interval = 'eventsFrom' | 'eventsTo' | 'receiptsFrom' | 'receiptsTo' | 'ignored';

/** One sync as it was asked for. */
export interface SyncRequest extends Omit<SyncView, Interval> {
  /** What the client has; `undefined` for an initial sync. */
  readonly since: Positions | undefined;
}

/** The newest events of a room in an interval. */
export interface Timeline {
  /** Oldest first. */
  readonly events: StoredEvent[];
  /** There are more events between the start of the interval and the first of these. */
  readonly limited: boolean;
  /** State events of the interval may be missing here: by the limit, the filter, or since the user may not see them. */
  readonly omitsState: boolean;
  /** Everything in the interval, filtered out or not, is at or after this position; where paging back goes on. */
  readonly start: number;
}
