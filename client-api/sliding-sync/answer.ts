import type { UserMembership } from '@trellis/rooms/memberships.ts';
import { Changes, type Connection } from './connection.ts';
import { extensionsJson } from './extensions.ts';
import { findInterest, type Interest, type Wanted } from './interest.ts';
import { findNews, type News } from './news.ts';
import type { SlidingRequest } from './request.ts';
import { type RoomResult, roomResult } from './room-result.ts';
import type { RoomLists } from './user-rooms.ts';
import type { SlidingSources, SlidingView } from './view.ts';

/** Rooms worked on at the same time: enough to overlap reads, few enough to bound memory. */
const PARALLEL_ROOMS = 20;

export interface SlidingAnswer {
  /** Members of the answer but `pos`, as JSON text. */
  readonly parts: readonly string[];
  /** There is nothing to tell: the client may be kept waiting. */
  readonly empty: boolean;
  readonly to: SlidingView['to'];
  readonly changes: Changes;
}

export interface Asker {
  readonly userId: string;
  readonly deviceId: string | undefined;
  readonly connection: Connection;
}

/** Looks what there is to tell over a connection now. */
export async function slidingAnswer(
  deps: SlidingSources & { readonly lists: RoomLists },
  { userId, deviceId, connection }: Asker,
  request: SlidingRequest,
): Promise<SlidingAnswer> {
  const { sources } = deps;
  const { from } = connection;
  const ignored = await sources.ignoredUsers(userId);
  const to = sources.notifier.positions();
  const changes = new Changes();
  const { interest, memberships, rooms } = await deps.lists.read(userId, to, async (list) => ({
    interest: await findInterest(request, list),
    memberships: list.memberships,
    rooms: list,
  }));
  const view: SlidingView = {
    ...deps,
    userId,
    deviceId,
    request,
    connection,
    changes,
    from,
    to,
    ignored,
    isDirect: (roomId) => rooms.isDirect(roomId),
    directChanged: (roomId, since) => rooms.directChanged(roomId, since),
  };
  const news = findNews(deps, userId, connection.ledgers, from, to);
  const results = await roomResults(view, candidates(view, interest, memberships, news));
  const extensions = await extensionsJson(view, { interest, memberships, news, results });

  const parts: string[] = [];
  if (request.txnId !== undefined) parts.push(`"txn_id":${JSON.stringify(request.txnId)}`);
  parts.push(`"lists":${listsJson(view, interest)}`);
  const texts: string[] = [];
  for (const [roomId, { json }] of results)
    if (json !== undefined) texts.push(`${JSON.stringify(roomId)}:${json}`);
  parts.push(`"rooms":{${texts.join(',')}}`, `"extensions":${extensions.json}`);
  return { parts, empty: texts.length === 0 && extensions.empty, to, changes };
}

interface Candidate {
  readonly membership: UserMembership;
  readonly wanted: Wanted;
}

/** The rooms of which there may be something to tell; notes of the others that they fall behind. */
function candidates(
  view: SlidingView,
  { rooms }: Interest,
  memberships: ReadonlyMap<string, UserMembership>,
  news: News,
): Candidate[] {
  const { connection, changes, from, to } = view;
  const { ledgers, configs } = connection;
  const found: Candidate[] = [];
  for (const [roomId, wanted] of rooms) {
    if (!mayHaveNews(view, roomId, wanted, news)) continue;
    const membership = memberships.get(roomId);
    // What is later than this answer is for the next one.
    if (membership && !membership.forgotten && membership.pos <= to.events)
      found.push({ membership, wanted });
  }
  const taken = new Set(found.map(({ membership }) => membership.roomId));
  for (const roomId of news.events) {
    const sent = ledgers.events.get(roomId);
    if (sent === undefined || taken.has(roomId)) continue;
    const membership = memberships.get(roomId);
    const config = configs.get(roomId);
    // Rooms that the user has left are in no list any more, but the client has to learn of it.
    const isOver = membership?.membership === 'leave' || membership?.membership === 'ban';
    if (isOver && config && membership.pos <= to.events && !membership.forgotten)
      found.push({ membership, wanted: { config, lists: [] } });
    else if (sent === 'live' && from) changes.ledgers.events.set(roomId, from.events);
  }
  return found;
}

function mayHaveNews(view: SlidingView, roomId: string, { config }: Wanted, news: News): boolean {
  const { connection, from } = view;
  // Rooms that fell behind did so on account of news.
  if (connection.ledgers.events.get(roomId) !== 'live' || news.events.has(roomId)) return true;
  if (from !== undefined && view.directChanged(roomId, from.accountData)) return true;
  const before = connection.configs.get(roomId);
  if (!before || before.key === config.key) return false;
  if (config.timelineLimit > before.timelineLimit) return true;
  const had = new Set(before.selectors.map(({ key }) => key));
  return config.selectors.some(({ key }) => !had.has(key));
}

async function roomResults(view: SlidingView, todo: Candidate[]): Promise<ReadonlyMap<string, RoomResult>> {
  const results = new Map<string, RoomResult>();
  // In the order of the lists, whatever is done first.
  for (const { membership } of todo)
    results.set(membership.roomId, { json: undefined, anew: false, timeline: [] });
  let next = 0;
  const work = async () => {
    for (let one = todo[next++]; one; one = todo[next++]) {
      const { roomId, membership } = one.membership;
      results.set(roomId, await roomResult(view, one.membership, one.wanted));
      const isOver = membership === 'leave' && one.membership.sender === view.userId;
      view.changes.ledgers.events.set(roomId, isOver ? undefined : 'live');
    }
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL_ROOMS, todo.length) }, work));
  return results;
}

/** How many rooms each list has; in the older dialect also which ones are where. */
function listsJson({ request }: SlidingView, { lists }: Interest): string {
  const json: Record<string, object> = {};
  for (const [key, { count, ranges }] of lists)
    json[key] =
      request.dialect === 'v4'
        ? { count }
        : { count, ops: ranges.map(({ range, roomIds }) => ({ op: 'SYNC', range, room_ids: roomIds })) };
  return JSON.stringify(json);
}
