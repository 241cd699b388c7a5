import type { Positions } from '@trellis/rooms/notifier.ts';
import type { RoomFacts } from '@trellis/rooms/room-facts.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { ThreadSubscriptions } from '@trellis/users/thread-subscriptions.ts';
import type { Viewer } from '../event-json.ts';
import { LazyMembers } from '../sync/lazy-members.ts';
import type { SyncSources } from '../sync/sources.ts';
import type { SyncView } from '../sync/view.ts';
import type { Changes, Connection, LedgerName } from './connection.ts';
import type { SlidingRequest } from './request.ts';
import type { RoomConfig } from './required-state.ts';

export interface SlidingSources {
  readonly sources: SyncSources;
  readonly facts: RoomFacts;
  readonly threads: ThreadSubscriptions;
  /** Aggregations of relations for events, as JSON text by event id. */
  readonly relations: SyncView['relations'];
}

/** One look at what there is to tell over a connection: by whom, from where and up to where. */
export interface SlidingView extends SlidingSources {
  readonly userId: string;
  readonly deviceId: string | undefined;
  readonly request: SlidingRequest;
  readonly connection: Connection;
  /** What the answer will change of the connection. */
  readonly changes: Changes;
  /** `undefined` for the first answer. */
  readonly from: Positions | undefined;
  readonly to: Positions;
  readonly ignored: ReadonlySet<string>;
  readonly isDirect: (roomId: string) => boolean;
  /** Whether the room began or ceased to be a direct chat after that position of account data. */
  readonly directChanged: (roomId: string, since: number) => boolean;
}

const STREAM_OF = { events: 'events', receipts: 'receipts', accountData: 'accountData' } as const;

/** Up to where the client has something of a room; `undefined` when it has nothing of it. */
export function knownUpTo(
  { connection, from }: SlidingView,
  ledger: LedgerName,
  roomId: string,
): number | undefined {
  const sent = connection.ledgers[ledger].get(roomId);
  return sent === 'live' ? from?.[STREAM_OF[ledger]] : sent;
}

export function viewerOf(view: SlidingView, membership?: Viewer['membership']): Viewer {
  return { userId: view.userId, deviceId: view.deviceId, membership, now: Date.now() };
}

export function relationsOf(
  view: SlidingView,
  events: readonly StoredEvent[],
): Promise<ReadonlyMap<string, string>> | undefined {
  const related = events.filter((event) => event.hasRelations !== false);
  return related.length > 0 ? view.relations(related, view.userId) : undefined;
}

const NO_LAZY = new LazyMembers();

/** The view as the parts of `/sync` take it. */
export function syncView(view: SlidingView, { timelineLimit }: Pick<RoomConfig, 'timelineLimit'>): SyncView {
  const { sources, userId, deviceId = '', from, to, ignored, relations } = view;
  return {
    sources,
    userId,
    deviceId,
    filter: { room: { timeline: { limit: timelineLimit } } },
    lazy: NO_LAZY,
    stateAfter: 'state_after',
    eventsFrom: from?.events,
    eventsTo: to.events,
    receiptsFrom: from?.receipts,
    receiptsTo: to.receipts,
    ignored,
    fullState: false,
    relations,
  };
}
