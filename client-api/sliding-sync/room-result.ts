import { stateKeyOf } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { roomStateBefore, stateAtPosition } from '@trellis/rooms/event-state.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { endOfStayBefore, membershipsAt } from '@trellis/rooms/visibility.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { eventJson, eventListJson } from '../event-json.ts';
import { strippedSection } from '../sync/room-sections.ts';
import { heroes } from '../sync/summary.ts';
import { readTimeline } from '../sync/timeline.ts';
import { placeToken } from '../sync/token.ts';
import type { Timeline } from '../sync/view.ts';
import type { Wanted } from './interest.ts';
import { roomConfig } from './required-state.ts';
import { type StateNews, stateNews } from './room-state.ts';
import { knownUpTo, relationsOf, type SlidingView, syncView, viewerOf } from './view.ts';

export interface RoomResult {
  /** As JSON text; `undefined` when there is nothing to tell. */
  readonly json: string | undefined;
  /** The room is told from the beginning, or older events of it are: its receipts are to be told anew. */
  readonly anew: boolean;
  readonly timeline: readonly StoredEvent[];
}

const NOTHING: RoomResult = { json: undefined, anew: false, timeline: [] };
const NAME = stateKeyOf('m.room.name', '');
const AVATAR = stateKeyOf('m.room.avatar', '');

/** What there is to tell of a room (MSC4186, `RoomResult`). */
export async function roomResult(
  view: SlidingView,
  membership: UserMembership,
  wanted: Wanted,
): Promise<RoomResult> {
  const room = await view.sources.rooms.get(membership.roomId);
  if (!room) return NOTHING;
  const known = knownUpTo(view, 'events', room.roomId);
  // Who comes into the room anew starts anew.
  const since = known !== undefined && membership.pos > known ? undefined : known;
  switch (membership.membership) {
    case 'join':
      return shownResult(view, room, membership, wanted, {
        since,
        upTo: view.to.events,
        state: await stateAtPosition(view.sources.rooms, room, view.to.events),
      });
    case 'invite':
    case 'knock':
      return since === undefined ? strippedResult(view, room, membership, wanted) : NOTHING;
    default:
      return since === undefined ? leftResult(view, room, membership, wanted, known) : NOTHING;
  }
}

/** The part of a room's history that is told. */
interface Span {
  /** What the client has; `undefined`: nothing. */
  readonly since: number | undefined;
  readonly upTo: number;
  /** The state at the end. */
  readonly state: Snapshot;
  /** The user's leave, where that is the end. */
  readonly left?: StoredEvent;
}

async function shownResult(
  view: SlidingView,
  room: Room,
  membership: UserMembership,
  wanted: Wanted,
  span: Span,
): Promise<RoomResult> {
  const { rooms } = view.sources;
  const { since, state } = span;
  const { config } = wanted;
  const before = since === undefined ? undefined : view.connection.configs.get(room.roomId);
  const expanded = before !== undefined && config.timelineLimit > before.timelineLimit;
  const timeline = await timelineOf(view, room, wanted, span, expanded);
  const limited = timeline?.limited === true && (since === undefined || timeline.start > since);
  const news = stateNews(view, {
    roomId: room.roomId,
    config,
    known:
      since === undefined ? undefined : { config: before, state: await stateAtPosition(rooms, room, since) },
    state,
    limited,
    timeline: timeline?.events ?? [],
  });
  // The newest events that the client has in a row.
  const inRow =
    limited || !before ? config.timelineLimit : Math.max(config.timelineLimit, before.timelineLimit);
  view.changes.configs.set(room.roomId, roomConfig(inRow, news.selectors));

  const parts = await describe(view, room, membership, { span, news });
  // Without a timeline the place of the room among others is news.
  const isQuiet = since !== undefined && !expanded && timeline?.events.length === 0 && parts.length === 0;
  if (isQuiet && news.refs.size === 0 && news.gone.length === 0) return NOTHING;
  parts.push(...(await common(view, room, membership, wanted)));
  if (since === undefined) parts.push('"initial":true');
  if (expanded) parts.push(`"${view.request.dialect === 'v4' ? '' : 'unstable_'}expanded_timeline":true`);
  if (timeline) parts.push(...(await timelineParts(view, room, timeline)));
  const required = await requiredState(view, news, span.left);
  if (required !== undefined) parts.push(`"required_state":[${required}]`);
  return {
    json: `{${parts.join(',')}}`,
    anew: since === undefined || expanded,
    timeline: timeline?.events ?? [],
  };
}

async function timelineOf(
  view: SlidingView,
  room: Room,
  { config }: Wanted,
  { since, upTo, left }: Span,
  expanded: boolean,
): Promise<Timeline | undefined> {
  if (config.timelineLimit === 0) return undefined;
  const after = since === undefined || expanded ? Number.NEGATIVE_INFINITY : since;
  return readTimeline(syncView(view, config), room, { after, upTo, ...(left && { always: left }) });
}

async function timelineParts(
  view: SlidingView,
  room: Room,
  { events, limited, start }: Timeline,
): Promise<string[]> {
  const parts = [`"prev_batch":"${placeToken(start)}"`, `"limited":${limited}`];
  const live = view.from;
  const numLive = live === undefined ? 0 : events.filter(({ pos = 0 }) => pos > live.events).length;
  parts.push(`"num_live":${numLive}`);
  if (events.length > 0) {
    const membership = await membershipsAt(view.sources.rooms, room, view.userId, events);
    const viewer = { ...viewerOf(view, membership), relations: await relationsOf(view, events) };
    parts.push(`"timeline":${eventListJson(events, viewer)}`);
  }
  return parts;
}

async function requiredState(
  view: SlidingView,
  { refs, gone }: StateNews,
  left: StoredEvent | undefined,
): Promise<string | undefined> {
  const ids = [...refs.values()].map(({ eventId }) => eventId);
  const events = await view.sources.rooms.parts.events.getMany(ids);
  if (left) events.set(left.eventId, left);
  const viewer = viewerOf(view);
  const texts = [...events.values()].map((event) => eventJson(event, viewer));
  if (view.request.dialect === 'v4')
    for (const [type, stateKey] of gone) texts.push(JSON.stringify({ type, state_key: stateKey }));
  return texts.length > 0 ? texts.join(',') : undefined;
}

/** What the room is called and who is in it, as far as the client does not know it. */
async function describe(
  view: SlidingView,
  room: Room,
  membership: UserMembership,
  { span: { since, state }, news }: { span: Span; news: StateNews },
): Promise<string[]> {
  const isNew = (key: string) => since === undefined || news.changed.has(key);
  const membersChanged = since === undefined || room.lastMembershipChange > since;
  const parts: string[] = [];
  const name = isNew(NAME) || membersChanged ? await textIn(view, state, NAME, 'name') : undefined;
  if (isNew(NAME)) parts.push(...textPart(view, 'name', name, since));
  if (isNew(AVATAR)) parts.push(...textPart(view, 'avatar', await textIn(view, state, AVATAR, 'url'), since));
  if (membership.membership !== 'join') return parts;
  if (name === undefined && (membersChanged || isNew(NAME)))
    parts.push(`"heroes":${JSON.stringify(await heroesOf(view, room, state))}`);
  if (membersChanged)
    parts.push(`"joined_count":${room.count('join')}`, `"invited_count":${room.count('invite')}`);
  if (directChanged(view, room.roomId, since)) parts.push(`"is_dm":${view.isDirect(room.roomId)}`);
  return parts;
}

function directChanged(view: SlidingView, roomId: string, since: number | undefined): boolean {
  if (since === undefined) return view.isDirect(roomId);
  return view.from !== undefined && view.directChanged(roomId, view.from.accountData);
}

async function textIn(
  { sources }: SlidingView,
  state: Snapshot,
  key: string,
  property: string,
): Promise<string | undefined> {
  const ref = state.getKey(key);
  const event = ref && (await sources.rooms.parts.events.get(ref.eventId));
  const text = event?.content[property];
  return typeof text === 'string' && text !== '' ? text : undefined;
}

/** Where there is none any more, clients of the merged dialect are told so. */
function textPart(
  view: SlidingView,
  name: string,
  text: string | undefined,
  since: number | undefined,
): string[] {
  if (text !== undefined) return [`"${name}":${JSON.stringify(text)}`];
  return since !== undefined && view.request.dialect === 'v4' ? [`"${name}":null`] : [];
}

async function heroesOf({ sources, userId }: SlidingView, room: Room, state: Snapshot): Promise<object[]> {
  const refs = heroes(room, userId).map((hero) => [hero, state.get('m.room.member', hero)] as const);
  const events = await sources.rooms.parts.events.getMany(refs.flatMap(([, ref]) => ref?.eventId ?? []));
  return refs.map(([hero, ref]) => {
    const { displayname, avatar_url: avatar } = (ref && events.get(ref.eventId)?.content) ?? {};
    return {
      user_id: hero,
      ...(typeof displayname === 'string' && { displayname }),
      ...(typeof avatar === 'string' && { avatar_url: avatar }),
    };
  });
}

/** What every result of a room has. */
async function common(
  view: SlidingView,
  room: Room,
  { membership, pos }: UserMembership,
  { lists }: Pick<Wanted, 'lists'>,
): Promise<string[]> {
  const bump = membership === 'join' ? await view.facts.bump(room) : undefined;
  const parts = [`"bump_stamp":${Math.max(0, bump ?? pos)}`];
  if (view.request.dialect === 'v4') {
    parts.push(`"membership":${JSON.stringify(membership)}`);
    if (lists.length > 0) parts.push(`"lists":${JSON.stringify(lists)}`);
    return parts;
  }
  const counts = await view.sources.unread(view.userId, room.roomId);
  let { notify, highlight } = counts;
  for (const thread of counts.threads.values()) {
    notify += thread.notify;
    highlight += thread.highlight;
  }
  return [...parts, `"notification_count":${notify}`, `"highlight_count":${highlight}`];
}

/** An invite or a knock: what may be seen from outside. */
async function strippedResult(
  view: SlidingView,
  room: Room,
  membership: UserMembership,
  wanted: Wanted,
): Promise<RoomResult> {
  const section = decodeJson(
    await strippedSection(syncView(view, wanted.config), room, membership),
  ) as Record<string, { events: object[] }>;
  const events = Object.values(section)[0]?.events ?? [];
  const name = view.request.dialect === 'v4' ? 'stripped_state' : 'invite_state';
  const parts = [...(await common(view, room, membership, wanted)), '"initial":true'];
  if (view.isDirect(room.roomId)) parts.push('"is_dm":true');
  parts.push(`"${name}":${JSON.stringify(events)}`);
  view.changes.configs.set(room.roomId, wanted.config);
  return { json: `{${parts.join(',')}}`, anew: false, timeline: [] };
}

/** A room that the user left or was removed from: what happened up to that, and nothing after it. */
async function leftResult(
  view: SlidingView,
  room: Room,
  membership: UserMembership,
  wanted: Wanted,
  known: number | undefined,
): Promise<RoomResult> {
  const { rooms } = view.sources;
  const own = await rooms.parts.events.get(membership.eventId);
  const stay = own && (await endOfStayBefore(rooms, own, view.userId));
  // Of a room that the user was in at `known` only what is new is told.
  const wasIn = stay?.pos !== undefined && (known === undefined || stay.pos > known);
  if (own?.pos !== undefined && wasIn)
    return shownResult(view, room, membership, wanted, {
      since: known !== undefined && (await wasJoined(view, room, known)) ? known : undefined,
      upTo: own.pos,
      state: (await roomStateBefore(rooms, stay)).overlaid(
        new Map([[stateKeyOf('m.room.member', view.userId), own]]),
      ),
      left: own,
    });
  // Those who were never in a room learn nothing of it but that the invite or knock that they know of is over.
  if (known === undefined || !own) return NOTHING;
  const parts = await common(view, room, membership, wanted);
  const events = eventListJson([own], viewerOf(view, membership.membership));
  parts.push(`"required_state":${events}`, `"timeline":${events}`, '"limited":false', '"num_live":1');
  return { json: `{${parts.join(',')}}`, anew: false, timeline: [] };
}

async function wasJoined({ sources, userId }: SlidingView, room: Room, pos: number): Promise<boolean> {
  const ref = (await stateAtPosition(sources.rooms, room, pos)).get('m.room.member', userId);
  const event = ref && (await sources.rooms.parts.events.get(ref.eventId));
  return event?.content.membership === 'join';
}
