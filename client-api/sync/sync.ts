import type { Positions } from '@trellis/rooms/notifier.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import { deviceListsSection, presenceEvents } from './people.ts';
import { joinedSection, leftSection, strippedSection, type SyncView } from './room-sections.ts';
import type { AccountDataItem } from './sources.ts';
import { syncToken } from './token.ts';

/** Rooms worked on at the same time: enough to overlap reads, few enough to bound memory. */
const PARALLEL_ROOMS = 20;
/** To-device messages in one answer (the next sync brings the rest). */
const TO_DEVICE_LIMIT = 100;

type Interval = 'eventsFrom' | 'eventsTo' | 'receiptsFrom' | 'receiptsTo' | 'ignored';

export interface SyncRequest extends Omit<SyncView, Interval> {
  /** What the client has; `undefined` for an initial sync. */
  readonly since: Positions | undefined;
}

export interface SyncAnswer {
  readonly json: string;
  /** There is nothing in it but the token: the client may be kept waiting. */
  readonly empty: boolean;
}

/** What concerns the user in the interval, sorted by what has to be done about it. */
interface News {
  /** Rooms with events, or any other news. */
  readonly rooms: Set<string>;
  readonly receipts: Set<string>;
  readonly typing: Set<string>;
  readonly accountData: Map<string | null, AccountDataItem[]>;
}

/** Answers a sync up to `to`. */
export async function answerSync(request: SyncRequest, to: Positions): Promise<SyncAnswer> {
  const { sources, userId, deviceId, since } = request;
  const view: SyncView = {
    ...request,
    eventsFrom: since?.events,
    eventsTo: to.events,
    receiptsFrom: since?.receipts,
    receiptsTo: to.receipts,
    ignored: await sources.ignoredUsers(userId),
  };
  const news = await findNews(request, to);
  const toDevice = await sources.toDevice(userId, deviceId, since?.toDevice ?? 0, to.toDevice, TO_DEVICE_LIMIT);
  const reached = { ...to, toDevice: toDevice.more ? toDevice.upTo : to.toDevice };
  const rooms = await roomsJson(request, view, news);
  const deviceLists = await deviceListsSection(request, to, news.rooms);
  const presence = await presenceEvents(request, to);
  const accountData = filterAccountData(request, news.accountData.get(null) ?? []);

  const parts = [`"next_batch":"${syncToken(reached)}"`];
  if (rooms) parts.push(`"rooms":{${rooms}}`);
  if (accountData.length > 0)
    parts.push(`"account_data":{"events":${JSON.stringify(accountData.map(({ type, content }) => ({ type, content })))}}`);
  if (toDevice.events.length > 0) parts.push(`"to_device":{"events":${JSON.stringify(toDevice.events)}}`);
  if (presence.length > 0) parts.push(`"presence":{"events":${JSON.stringify(presence)}}`);
  if (deviceLists) parts.push(`"device_lists":${JSON.stringify(deviceLists)}`);
  const empty = parts.length === 1;
  const { oneTimeKeys, unusedFallbackTypes } = await sources.keyCounts(userId, deviceId);
  parts.push(
    `"device_one_time_keys_count":${JSON.stringify(oneTimeKeys)}`,
    `"device_unused_fallback_key_types":${JSON.stringify(unusedFallbackTypes)}`,
    `"org.matrix.msc2732.device_unused_fallback_key_types":${JSON.stringify(unusedFallbackTypes)}`,
  );
  return { json: `{${parts.join(',')}}`, empty };
}

async function findNews({ sources, userId, since, fullState }: SyncRequest, to: Positions): Promise<News> {
  const news: News = { rooms: new Set(), receipts: new Set(), typing: new Set(), accountData: new Map() };
  const memberships = await sources.memberships.of(userId);
  const feed = sources.notifier.feed(userId);
  let accountDataChanged = true;
  if (since !== undefined && feed.covers(since)) {
    accountDataChanged = false;
    for (const { stream, roomId } of feed.between(since, to)) {
      if (stream === 'accountData') accountDataChanged = true;
      if (roomId === null) continue;
      news.rooms.add(roomId);
      if (stream === 'receipts') news.receipts.add(roomId);
      if (stream === 'typing') news.typing.add(roomId);
    }
    if (fullState) for (const roomId of memberships.keys()) news.rooms.add(roomId);
  } else {
    for (const { roomId, membership } of memberships.values()) {
      news.rooms.add(roomId);
      if (membership !== 'join') continue;
      news.receipts.add(roomId);
      if (sources.typing(roomId).length > 0) news.typing.add(roomId);
    }
  }
  if (accountDataChanged)
    for (const item of await sources.accountData(userId, since?.accountData, to.accountData)) {
      const ofRoom = news.accountData.get(item.roomId);
      if (ofRoom) ofRoom.push(item);
      else news.accountData.set(item.roomId, [item]);
      if (item.roomId !== null) news.rooms.add(item.roomId);
    }
  return news;
}

type Section = 'join' | 'invite' | 'knock' | 'leave';

async function roomsJson(request: SyncRequest, view: SyncView, news: News): Promise<string | undefined> {
  const { sources, userId } = request;
  const memberships = await sources.memberships.of(userId);
  const sections: Record<Section, string[]> = { join: [], invite: [], knock: [], leave: [] };
  const todo = [...news.rooms].filter((roomId) => isWanted(request, roomId));
  const work = async () => {
    for (let roomId = todo.pop(); roomId !== undefined; roomId = todo.pop()) {
      const membership = memberships.get(roomId);
      if (!membership) continue;
      const section = await roomSection(view, membership, news);
      if (section) sections[section.kind].push(`${JSON.stringify(roomId)}:${section.json}`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL_ROOMS, todo.length) }, work));
  const filled = (Object.entries(sections) as Array<[Section, string[]]>).filter(([, list]) => list.length > 0);
  if (filled.length === 0) return undefined;
  return filled.map(([kind, list]) => `"${kind}":{${list.join(',')}}`).join(',');
}

async function roomSection(
  view: SyncView,
  membership: UserMembership,
  news: News,
): Promise<{ kind: Section; json: string } | undefined> {
  const { sources, eventsFrom, eventsTo } = view;
  const room = await sources.rooms.get(membership.roomId);
  if (!room) return undefined;
  // A membership from after this sync's interval is the next sync's business.
  const changed = membership.pos <= eventsTo && (eventsFrom === undefined || membership.pos > eventsFrom);
  switch (membership.membership) {
    case 'join': {
      const json = await joinedSection(view, room, membership, {
        accountData: news.accountData.get(room.roomId) ?? [],
        typing: news.typing.has(room.roomId),
        receipts: news.receipts.has(room.roomId),
      });
      return json === undefined ? undefined : { kind: 'join', json };
    }
    case 'invite':
    case 'knock':
      if (!changed || view.ignored.has(membership.sender)) return undefined;
      return { kind: membership.membership, json: await strippedSection(view, room, membership) };
    default: {
      if (membership.forgotten || !changed) return undefined;
      // At first only those who ask for them get rooms that they left.
      if (eventsFrom === undefined && view.filter.room?.include_leave !== true) return undefined;
      return { kind: 'leave', json: await leftSection(view, room, membership) };
    }
  }
}

function isWanted({ filter }: SyncRequest, roomId: string): boolean {
  if (filter.room?.not_rooms?.includes(roomId)) return false;
  return filter.room?.rooms === undefined || filter.room.rooms.includes(roomId);
}

function filterAccountData({ filter, userId }: SyncRequest, items: readonly AccountDataItem[]): AccountDataItem[] {
  const wanted = filter.account_data;
  return items.filter((item) => !wanted || matchesEventFilter(wanted, { ...item, sender: userId }));
}
