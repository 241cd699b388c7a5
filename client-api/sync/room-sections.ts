import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { stateAtPosition } from '@trellis/rooms/event-state.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { strip, strippedStateEvents } from '@trellis/rooms/stripped-state.ts';
import { membershipsAt } from '@trellis/rooms/visibility.ts';
import { eventJson, eventListJson, type Viewer } from '../event-json.ts';
import { ephemeralEvents } from './ephemeral.ts';
import { sectionState } from './section-state.ts';
import { stickyJson } from './sticky.ts';
import { roomSummary } from './summary.ts';
import { readTimeline } from './timeline.ts';
import { placeToken } from './token.ts';
import type { JoinedNews, SyncView, Timeline } from './view.ts';

/** The section of a room that the user is in, as JSON text; `undefined` when there is nothing to tell. */
export async function joinedSection(
  view: SyncView,
  room: Room,
  membership: UserMembership,
  news: JoinedNews,
): Promise<string | undefined> {
  const { sources, userId, filter } = view;
  const isEager = filter.room?.state?.lazy_load_members !== true;
  // Who wants all members gets the room when they are here.
  if (isEager && (room.partial || room.completeSince > view.eventsTo)) return undefined;
  const since = isEager ? Math.max(membership.pos, room.completeSince) : membership.pos;
  const isNew = view.eventsFrom === undefined || since > view.eventsFrom;
  const from = isNew ? undefined : view.eventsFrom;
  const timeline = await readTimeline(view, room, {
    after: from ?? Number.NEGATIVE_INFINITY,
    upTo: view.eventsTo,
  });
  const summary = summaryChanged(room, timeline, from)
    ? await roomSummary(sources.rooms, room, userId)
    : undefined;
  const state = await sectionState(view, room, {
    from,
    timeline,
    end: () => stateAtPosition(sources.rooms, room, view.eventsTo),
    needed: [...(summary?.['m.heroes'] ?? []), ...(from === undefined ? [userId] : [])],
  });
  const [{ events: ephemeral, readOn }, sticky, unread] = await Promise.all([
    ephemeralEvents(view, room, news, isNew),
    stickyJson(view, room, timeline, from),
    unreadJson(view, room),
  ]);
  const wanted = filter.room?.account_data;
  const accountData = news.accountData.filter(
    (item) => !wanted || matchesEventFilter(wanted, { ...item, sender: userId }),
  );
  const isQuiet =
    sticky === undefined &&
    timeline.events.length === 0 &&
    state.length === 0 &&
    ephemeral.length === 0 &&
    accountData.length === 0;
  if (isQuiet && !isNew && !readOn && summary === undefined) return undefined;

  return `{${[
    `"timeline":${await timelineJson(view, room, isNew ? asNew(view, timeline) : timeline)}`,
    `"${view.stateAfter}":{"events":${eventListJson(state, viewer(view, 'join'))}}`,
    `"account_data":{"events":${JSON.stringify(accountData.map(({ type, content }) => ({ type, content })))}}`,
    `"ephemeral":{"events":${JSON.stringify(ephemeral)}}`,
    unread,
    `"summary":${JSON.stringify(summary ?? {})}`,
    ...(sticky === undefined ? [] : [`"msc4354_sticky":{"events":${sticky}}`]),
  ].join(',')}}`;
}

/** Who is in the room, or what it is called where that decides whether it needs heroes, is not as the client knows it. */
function summaryChanged(room: Room, { events }: Timeline, from: number | undefined): boolean {
  if (from === undefined || room.lastMembershipChange > from) return true;
  return events.some(({ type, stateKey }) => stateKey !== undefined && SUMMARISED.has(type));
}

const SUMMARISED: ReadonlySet<string> = new Set(['m.room.member', 'm.room.name', 'm.room.canonical_alias']);

/**
 * The timeline of a room that the user joined since the client looked. The client may hold one of an earlier stay,
 * which this one does not go on with unless it shows the room from its beginning.
 */
function asNew(view: SyncView, timeline: Timeline): Timeline {
  const isWhole = timeline.events[0]?.type === 'm.room.create';
  return view.eventsFrom === undefined || isWhole ? timeline : { ...timeline, limited: true };
}

/** The section of an invite or a knock: stripped state, the user's own member event last. */
export async function strippedSection(
  view: SyncView,
  room: Room,
  membership: UserMembership,
): Promise<string> {
  const { sources, userId } = view;
  const kind = membership.membership === 'invite' ? 'invite_state' : 'knock_state';
  const own = await sources.rooms.parts.events.get(membership.eventId);
  const stored = await sources.memberships.strippedState(userId, room.roomId);
  const events: string[] = [];
  if (stored !== undefined)
    for (const event of decodeJson(stored) as Array<{ type?: string; state_key?: string }>)
      if (!(event.type === 'm.room.member' && event.state_key === userId)) events.push(JSON.stringify(event));
  if (stored === undefined && room.isResident)
    for (const event of await strippedStateEvents(sources.rooms, room, membership.sender))
      if (event.stateKey !== userId) events.push(JSON.stringify(strip(event)));
  if (own) events.push(eventJson(own, viewer(view, undefined)));
  return `{"${kind}":{"events":[${events.join(',')}]}}`;
}

export function viewer(view: SyncView, membership: string | undefined): Viewer {
  const { userId, deviceId, filter } = view;
  return { userId, deviceId, membership, format: filter.event_format, now: Date.now() };
}

export async function timelineJson(view: SyncView, room: Room, timeline: Timeline): Promise<string> {
  const related = timeline.events.filter((event) => event.hasRelations !== false);
  const relations = related.length > 0 ? await view.relations(related, view.userId) : undefined;
  const membership = await membershipsAt(view.sources.rooms, room, view.userId, timeline.events);
  const events = eventListJson(timeline.events, { ...viewer(view, undefined), membership, relations });
  return `{"events":${events},"limited":${timeline.limited},"prev_batch":"${placeToken(timeline.start)}"}`;
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
