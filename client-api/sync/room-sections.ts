import type { Filter } from '@trellis/protocol/filters.ts';
import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { strip, strippedStateEvents } from '@trellis/rooms/stripped-state.ts';
import { endOfLastStay, membershipsAt } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { eventJson, eventListJson, type Viewer } from '../event-json.ts';
import type { LazyMembers } from './lazy-members.ts';
import { roomState, stateAt, stateBefore } from './room-state.ts';
import type { AccountDataItem, SyncSources } from './sources.ts';
import { roomSummary } from './summary.ts';
import { readTimeline, type Timeline } from './timeline.ts';
import { placeToken } from './token.ts';

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
  readonly relations: (events: readonly StoredEvent[], userId: string) => Promise<ReadonlyMap<string, string>>;
}

export interface JoinedNews {
  readonly accountData: readonly AccountDataItem[];
  readonly typing: boolean;
  readonly receipts: boolean;
}

/** The section of a room that the user is in, as JSON text; `undefined` when there is nothing to tell. */
export async function joinedSection(
  view: SyncView,
  room: Room,
  membership: UserMembership,
  news: JoinedNews,
): Promise<string | undefined> {
  const { sources, userId, filter } = view;
  const isNew = view.eventsFrom === undefined || membership.pos > view.eventsFrom;
  const after = isNew ? Number.NEGATIVE_INFINITY : view.eventsFrom!;
  const timeline = await readTimeline(view, room, after, view.eventsTo);
  const state = await sectionState(view, room, timeline, isNew ? undefined : view.eventsFrom);
  const ephemeral = await ephemeralEvents(view, room, news, isNew);
  const accountData = news.accountData.filter(
    (item) => !filter.room?.account_data || matchesEventFilter(filter.room.account_data, { ...item, sender: userId }),
  );
  const quiet = timeline.events.length === 0 && state.length === 0 && ephemeral.length === 0 && accountData.length === 0;
  if (quiet && !isNew && !news.receipts) return undefined;

  const parts = [
    `"timeline":${await timelineJson(view, room, timeline)}`,
    `"${view.stateAfter}":{"events":${eventListJson(state, viewer(view, 'join'))}}`,
    `"account_data":{"events":${JSON.stringify(accountData.map(({ type, content }) => ({ type, content })))}}`,
    `"ephemeral":{"events":${JSON.stringify(ephemeral)}}`,
    await unreadJson(view, room),
  ];
  const membersChanged = isNew || [...timeline.events, ...state].some((event) => event.type === 'm.room.member');
  parts.push(`"summary":${membersChanged ? JSON.stringify(await roomSummary(sources.rooms, room, userId)) : '{}'}`);
  return `{${parts.join(',')}}`;
}

/** The section of a room that the user left or was banned from: what happened up to that, and nothing after it. */
export async function leftSection(view: SyncView, room: Room, membership: UserMembership): Promise<string> {
  const { sources, userId } = view;
  const end = Math.min(membership.pos, view.eventsTo);
  const own = await sources.rooms.parts.events.get(membership.eventId);
  const viewOfLeft = viewer(view, membership.membership);
  const stay = own?.pos === undefined ? undefined : await endOfLastStay(sources.rooms, room, userId);
  const endedBefore = stay !== own && view.eventsFrom !== undefined && (stay?.pos ?? 0) <= view.eventsFrom;
  if (own?.pos === undefined || !stay || endedBefore) {
    // An invite or knock that ended, a ban after a leave: the room itself was not seen meanwhile.
    const events = own ? eventListJson([own], viewOfLeft) : '[]';
    return `{"timeline":{"events":${events},"limited":false,"prev_batch":"${placeToken(end)}"},"${view.stateAfter}":{"events":[]},"account_data":{"events":[]}}`;
  }
  const after = view.eventsFrom ?? Number.NEGATIVE_INFINITY;
  const timeline = await readTimeline(view, room, after, own.pos);
  const state = await sectionState(view, room, timeline, view.eventsFrom, own);
  return (
    `{"timeline":${await timelineJson(view, room, timeline)}` +
    `,"${view.stateAfter}":{"events":${eventListJson(state, viewOfLeft)}},"account_data":{"events":[]}}`
  );
}

/** The section of an invite or a knock: stripped state, the user's own member event last. */
export async function strippedSection(view: SyncView, room: Room, membership: UserMembership): Promise<string> {
  const { sources, userId } = view;
  const kind = membership.membership === 'invite' ? 'invite_state' : 'knock_state';
  const own = await sources.rooms.parts.events.get(membership.eventId);
  const stored = await sources.memberships.strippedState(userId, room.roomId);
  const events: string[] = [];
  if (stored !== undefined)
    for (const event of JSON.parse(stored) as Array<{ type?: string; state_key?: string }>)
      if (!(event.type === 'm.room.member' && event.state_key === userId)) events.push(JSON.stringify(event));
  if (stored === undefined && room.isResident)
    for (const event of await strippedStateEvents(sources.rooms, room, membership.sender))
      if (event.stateKey !== userId) events.push(JSON.stringify(strip(event)));
  if (own) events.push(eventJson(own, viewer(view, undefined)));
  return `{"${kind}":{"events":[${events.join(',')}]}}`;
}

function viewer(view: SyncView, membership: string | undefined): Viewer {
  return { userId: view.userId, deviceId: view.deviceId, membership, now: Date.now() };
}

async function timelineJson(view: SyncView, room: Room, timeline: Timeline): Promise<string> {
  const related = timeline.events.filter((event) => event.hasRelations !== false);
  const relations = related.length > 0 ? await view.relations(related, view.userId) : undefined;
  const membership = await membershipsAt(view.sources.rooms, room, view.userId, timeline.events);
  const events = eventListJson(timeline.events, { ...viewer(view, undefined), membership, relations });
  return `{"events":${events},"limited":${timeline.limited},"prev_batch":"${placeToken(timeline.start)}"}`;
}

async function sectionState(
  view: SyncView,
  room: Room,
  timeline: Timeline,
  from: number | undefined,
  until?: StoredEvent,
): Promise<StoredEvent[]> {
  const { rooms } = view.sources;
  const lazy = view.filter.room?.state?.lazy_load_members === true;
  const after = view.stateAfter !== 'state';
  const knownFrom = view.fullState ? undefined : from;
  // Nothing between what the client has and the timeline's start, so no state can have changed there.
  if (!after && knownFrom !== undefined && !timeline.limited && !lazy) return [];
  const end = until ? await stateBefore(rooms, room, until) : await stateAt(rooms, room, view.eventsTo);
  const start = timeline.events[0];
  const snapshot = after || !start ? end : await stateBefore(rooms, room, start);
  const lazyMembers = lazy ? new Set(timeline.events.map((event) => event.sender)) : undefined;
  if (lazyMembers && knownFrom === undefined) lazyMembers.add(view.userId);
  const redundant = view.filter.room?.state?.include_redundant_members === true;
  const knownMembers =
    lazy && !redundant && knownFrom !== undefined
      ? view.lazy.sent(view.userId, view.deviceId, room.roomId)
      : undefined;
  const nothingBetween = !after && knownFrom !== undefined && !timeline.limited;
  const state = await roomState(rooms, room, {
    // Only the members that lazy loading asks for.
    from: nothingBetween ? view.eventsTo : knownFrom,
    until: snapshot,
    filter: view.filter.room?.state,
    lazyMembers,
    knownMembers,
  });
  if (lazyMembers) view.lazy.remember(view.userId, view.deviceId, room.roomId, lazyMembers);
  return state;
}

async function ephemeralEvents(view: SyncView, room: Room, news: JoinedNews, isNew: boolean): Promise<object[]> {
  const { sources, userId, filter } = view;
  const events: Array<{ type: string; content: object; room_id?: string }> = [];
  if (news.receipts || isNew) {
    const content = await sources.receipts(room.roomId, userId, isNew ? undefined : view.receiptsFrom, view.receiptsTo);
    if (content) events.push({ type: 'm.receipt', content });
  }
  if (news.typing) events.push({ type: 'm.typing', content: { user_ids: sources.typing(room.roomId) } });
  const wanted = filter.room?.ephemeral;
  return wanted ? events.filter((event) => matchesEventFilter(wanted, { ...event, sender: userId })) : events;
}

async function unreadJson(view: SyncView, room: Room): Promise<string> {
  const counts = await view.sources.unread(view.userId, room.roomId);
  const byThread = view.filter.room?.timeline?.unread_thread_notifications === true;
  let { notify, highlight } = counts;
  if (!byThread)
    for (const thread of counts.threads.values()) {
      notify += thread.notify;
      highlight += thread.highlight;
    }
  let json = `"unread_notifications":{"notification_count":${notify},"highlight_count":${highlight}}`;
  if (byThread && counts.threads.size > 0) {
    const threads: Record<string, object> = {};
    for (const [root, thread] of counts.threads)
      threads[root] = { notification_count: thread.notify, highlight_count: thread.highlight };
    json += `,"unread_thread_notifications":${JSON.stringify(threads)}`;
  }
  return json;
}
