import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import { leftSection } from './left-section.ts';
import { deviceListsSection, presenceEvents, sharingChanges } from './people.ts';
import { usersSection } from './profiles.ts';
import { joinedSection, strippedSection } from './room-sections.ts';
import type { AccountDataItem } from './sources.ts';
import { syncToken } from './token.ts';
import type { JoinedNews, SyncRequest, SyncView } from './view.ts';

/** Rooms worked on at the same time: enough to overlap reads, few enough to bound memory. */
const PARALLEL_ROOMS = 20;
/** To-device messages in one answer (the next sync brings the rest). */
const TO_DEVICE_LIMIT = 100;

export interface SyncAnswer {
  readonly json: string;
  /** Up to where it tells. */
  readonly to: Positions;
  /** There is nothing in it but the token: the client may be kept waiting. */
  readonly empty: boolean;
}

/** What concerns the user in the interval, sorted by what has to be done about it. */
interface News {
  /** Rooms with events, or any other news, and the user's membership there at the end of the interval. */
  readonly rooms: Map<string, UserMembership>;
  readonly receipts: Set<string>;
  readonly typing: Set<string>;
  accountDataChanged: boolean;
}

type AccountDataByRoom = Map<string | null, AccountDataItem[]>;

/** Answers a sync with all that there is now. */
export async function answerSync(request: SyncRequest): Promise<SyncAnswer> {
  const { sources, userId, deviceId, since } = request;
  const [memberships, ignored] = await Promise.all([
    sources.memberships.of(userId),
    sources.ignoredUsers(userId),
  ]);
  // Taken together, without waiting in between: the memberships are those of these positions.
  const to = sources.notifier.positions();
  const news = findNews(request, memberships, to);
  const view: SyncView = {
    ...request,
    eventsFrom: since?.events,
    eventsTo: to.events,
    receiptsFrom: since?.receipts,
    receiptsTo: to.receipts,
    ignored,
  };
  const accountData = await accountDataNews(request, memberships, news, to);
  const toDevice = await sources.toDevice(
    userId,
    deviceId,
    since?.toDevice ?? 0,
    to.toDevice,
    TO_DEVICE_LIMIT,
  );
  const reached = { ...to, toDevice: toDevice.more ? toDevice.upTo : to.toDevice };
  const rooms = await roomsJson(request, view, news, accountData);
  const changes = await sharingChanges(request, to, news.rooms.values());
  const deviceLists = await deviceListsSection(request, to, changes);
  const presence = await presenceEvents(request, to, changes.joined);
  const global = filterAccountData(request, accountData.get(null) ?? []);

  const parts = [`"next_batch":"${syncToken(reached)}"`];
  if (rooms) parts.push(`"rooms":{${rooms}}`);
  if (global.length > 0)
    parts.push(
      `"account_data":{"events":${JSON.stringify(global.map(({ type, content }) => ({ type, content })))}}`,
    );
  if (toDevice.events.length > 0) parts.push(`"to_device":{"events":${JSON.stringify(toDevice.events)}}`);
  if (presence.length > 0) parts.push(`"presence":{"events":${JSON.stringify(presence)}}`);
  const users = await usersSection(request, to, changes);
  if (users) parts.push(`"org.matrix.msc4429.users":${users}`);
  if (deviceLists) parts.push(`"device_lists":${JSON.stringify(deviceLists)}`);
  const empty = parts.length === 1;
  const { oneTimeKeys, unusedFallbackTypes } = await sources.keyCounts(userId, deviceId);
  parts.push(
    `"device_one_time_keys_count":${JSON.stringify(oneTimeKeys)}`,
    `"device_unused_fallback_key_types":${JSON.stringify(unusedFallbackTypes)}`,
    `"org.matrix.msc2732.device_unused_fallback_key_types":${JSON.stringify(unusedFallbackTypes)}`,
  );
  return { json: `{${parts.join(',')}}`, to, empty };
}

function findNews(
  { sources, userId, since, fullState }: SyncRequest,
  memberships: ReadonlyMap<string, UserMembership>,
  to: Positions,
): News {
  const news: News = { rooms: new Map(), receipts: new Set(), typing: new Set(), accountDataChanged: true };
  const feed = sources.notifier.feed(userId);
  const isCovered = since !== undefined && feed.covers(since);
  if (isCovered) {
    news.accountDataChanged = false;
    for (const { stream, roomId } of feed.between(since, to)) {
      if (stream === 'accountData') news.accountDataChanged = true;
      if (roomId === null) continue;
      const membership = memberships.get(roomId);
      if (membership) news.rooms.set(roomId, membership);
      if (stream === 'receipts') news.receipts.add(roomId);
      if (stream === 'typing') news.typing.add(roomId);
    }
  }
  if (isCovered && !fullState) return news;
  for (const membership of memberships.values()) {
    const { roomId } = membership;
    news.rooms.set(roomId, membership);
    if (isCovered || membership.membership !== 'join') continue;
    news.receipts.add(roomId);
    if (sources.typing(roomId).length > 0) news.typing.add(roomId);
  }
  return news;
}

/** Changed account data by room; the rooms are added to the news. */
async function accountDataNews(
  { sources, userId, since }: SyncRequest,
  memberships: ReadonlyMap<string, UserMembership>,
  news: News,
  to: Positions,
): Promise<AccountDataByRoom> {
  const byRoom: AccountDataByRoom = new Map();
  const joined = since === undefined ? [] : newlyJoined(news, since);
  // What was set for a room before the user joined it, by tags or an upgrade, comes with the room.
  if (joined.length > 0)
    for (const item of await sources.accountData(userId, undefined, to.accountData))
      if (item.roomId !== null && joined.includes(item.roomId)) add(byRoom, item);
  if (!news.accountDataChanged) return byRoom;
  for (const item of await sources.accountData(userId, since?.accountData, to.accountData)) {
    if (item.roomId !== null && joined.includes(item.roomId)) continue;
    add(byRoom, item);
    const membership = item.roomId === null ? undefined : memberships.get(item.roomId);
    if (membership && !news.rooms.has(membership.roomId)) news.rooms.set(membership.roomId, membership);
  }
  return byRoom;
}

function newlyJoined({ rooms }: News, since: Positions): string[] {
  return [...rooms.values()]
    .filter(({ membership, pos }) => membership === 'join' && pos > since.events)
    .map(({ roomId }) => roomId);
}

function add(byRoom: AccountDataByRoom, item: AccountDataItem): void {
  const ofRoom = byRoom.get(item.roomId);
  if (ofRoom) ofRoom.push(item);
  else byRoom.set(item.roomId, [item]);
}

type Section = 'join' | 'invite' | 'knock' | 'leave';

async function roomsJson(
  request: SyncRequest,
  view: SyncView,
  news: News,
  accountData: AccountDataByRoom,
): Promise<string | undefined> {
  const sections: Record<Section, string[]> = { join: [], invite: [], knock: [], leave: [] };
  const todo = [...news.rooms.values()].filter(({ roomId }) => isWanted(request, roomId));
  const work = async () => {
    for (let membership = todo.pop(); membership !== undefined; membership = todo.pop()) {
      const { roomId } = membership;
      const section = await roomSection(view, membership, {
        accountData: accountData.get(roomId) ?? [],
        typing: news.typing.has(roomId),
        receipts: news.receipts.has(roomId),
      });
      if (section) sections[section.kind].push(`${JSON.stringify(roomId)}:${section.json}`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL_ROOMS, todo.length) }, work));
  const filled = (Object.entries(sections) as Array<[Section, string[]]>).filter(
    ([, list]) => list.length > 0,
  );
  if (filled.length === 0) return undefined;
  return filled.map(([kind, list]) => `"${kind}":{${list.join(',')}}`).join(',');
}

async function roomSection(
  view: SyncView,
  membership: UserMembership,
  news: JoinedNews,
): Promise<{ kind: Section; json: string } | undefined> {
  const { sources, eventsFrom, eventsTo } = view;
  const room = await sources.rooms.get(membership.roomId);
  if (!room) return undefined;
  // A membership from after this sync's interval is the next sync's business.
  if (membership.pos > eventsTo) return undefined;
  const changed = eventsFrom === undefined || membership.pos > eventsFrom;
  switch (membership.membership) {
    case 'join': {
      const json = await joinedSection(view, room, membership, news);
      return json === undefined ? undefined : { kind: 'join', json };
    }
    case 'invite':
    case 'knock':
      if (!changed || view.ignored.has(membership.sender)) return undefined;
      if (membership.membership === 'invite' && (await sources.hidesInvite(view.userId, membership.sender)))
        return undefined;
      return { kind: membership.membership, json: await strippedSection(view, room, membership) };
    default: {
      if (!changed) return undefined;
      // At first only those who ask for them get rooms that they left. That a room was left is news for all devices of
      // the user, though one of them has forgotten it already.
      if (eventsFrom === undefined && (membership.forgotten || view.filter.room?.include_leave !== true))
        return undefined;
      return { kind: 'leave', json: await leftSection(view, room, membership) };
    }
  }
}

function isWanted({ filter }: SyncRequest, roomId: string): boolean {
  if (filter.room?.not_rooms?.includes(roomId)) return false;
  return filter.room?.rooms === undefined || filter.room.rooms.includes(roomId);
}

function filterAccountData(
  { filter, userId }: SyncRequest,
  items: readonly AccountDataItem[],
): AccountDataItem[] {
  const wanted = filter.account_data;
  return items.filter((item) => !wanted || matchesEventFilter(wanted, { ...item, sender: userId }));
}
