import { invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { type EventFilter, matchesEventFilter, parseEventFilter } from '@trellis/protocol/filters.ts';
import type { Room } from '@trellis/rooms/room.ts';
import {
  SEARCH_KINDS,
  type SearchHit,
  type SearchIndex,
  type SearchKey,
} from '@trellis/rooms/search-index.ts';
import { searchTermsOf } from '@trellis/rooms/search-words.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type EventReader, sendJson } from './client-events.ts';
import { type ContextDeps, eventsAround } from './context.ts';
import { eventListJson } from './event-json.ts';
import { membersAt } from './messages.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';
import { parseSearchToken, type SearchPlace, searchToken } from './search-token.ts';
import { placeToken } from './sync/token.ts';

export interface SearchDeps extends ContextDeps {
  readonly access: RoomAccess;
  readonly index: SearchIndex;
}

const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 50;
const DEFAULT_CONTEXT = 5;
const MAX_CONTEXT = 20;
const MAX_TERMS = 20;
const MAX_ROOMS = 5_000;
/** How long one search may work on the index, in milliseconds. */
const INDEX_TIME = 5_000;
/** Pages of hits gone through for those that the user may see. */
const MAX_READS = 5;

const events = Type.Object({
  search_term: Type.String(),
  keys: Type.Optional(Type.Array(Type.String(), { maxItems: 10 })),
  filter: Type.Optional(Type.Record(Type.String(), Type.Any())),
  order_by: Type.Optional(Type.String()),
  event_context: Type.Optional(
    Type.Object({
      before_limit: Type.Optional(Type.Integer({ minimum: 0 })),
      after_limit: Type.Optional(Type.Integer({ minimum: 0 })),
      include_profile: Type.Optional(Type.Boolean()),
    }),
  ),
  include_state: Type.Optional(Type.Boolean()),
  groupings: Type.Optional(
    Type.Object({
      group_by: Type.Optional(Type.Array(Type.Object({ key: Type.String() }), { maxItems: 10 })),
    }),
  ),
});
type Criteria = Static<typeof events>;
const body = Type.Object({ search_categories: Type.Object({ room_events: Type.Optional(events) }) });
const querystring = Type.Object({ next_batch: Type.Optional(Type.String()) });

/** `POST /search` (spec: "Server Side Search"). */
export function searchRoutes(app: FastifyInstance, deps: SearchDeps): void {
  app.post<{ Body: Static<typeof body>; Querystring: { next_batch?: string } }>(
    '/_matrix/client/v3/search',
    { schema: { body, querystring } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const criteria = request.body.search_categories.room_events;
      if (!criteria) return { search_categories: {} };
      const result = await searchEvents(deps, reader, criteria, request.query.next_batch);
      return sendJson(reply, `{"search_categories":{"room_events":${result}}}`);
    },
  );
}

interface Found {
  readonly hit: SearchHit;
  readonly event: StoredEvent;
  readonly room: Room;
}

async function searchEvents(
  deps: SearchDeps,
  reader: EventReader,
  criteria: Criteria,
  nextBatch: string | undefined,
): Promise<string> {
  const filter = parseEventFilter((criteria.filter ?? {}) as JsonObject);
  const order = criteria.order_by ?? 'rank';
  if (order !== 'rank' && order !== 'recent') throw invalidParam('order_by must be "rank" or "recent"');
  const groups = groupsOf(criteria);
  const keys = keysOf(criteria);
  const terms = searchTermsOf(criteria.search_term);
  const words = terms.words.slice(0, MAX_TERMS);
  const place = nextBatch ? parseSearchToken(nextBatch) : undefined;
  const limit = Math.max(1, Math.min(filter.limit ?? DEFAULT_LIMIT, MAX_LIMIT));

  const rooms = words.length === 0 ? [] : await searchableRooms(deps, reader.userId, filter, place);
  await deps.index.update(await deps.index.stale(rooms), Date.now() + INDEX_TIME);
  const { found, count, next } = await collect(deps, reader.userId, filter, {
    rooms,
    words,
    keys,
    order,
    senders: place?.group?.key === 'sender' ? [place.group.value] : filter.senders,
    notSenders: filter.not_senders,
    limit,
    place,
  });
  const parts = [
    `"count":${count}`,
    `"highlights":${JSON.stringify(terms.highlights.slice(0, MAX_TERMS))}`,
    `"results":[${(await Promise.all(found.map((one) => resultJson(deps, reader, criteria, filter, one)))).join(',')}]`,
  ];
  if (groups.length > 0) parts.push(`"groups":${JSON.stringify(groupsJson(found, groups, next))}`);
  if (criteria.include_state) parts.push(`"state":${await stateJson(deps, reader, found)}`);
  if (next) parts.push(`"next_batch":"${searchToken(next)}"`);
  return `{${parts.join(',')}}`;
}

/** Rooms that the user is or was in, as far as the filter lets them pass; encrypted ones are not searched. */
async function searchableRooms(
  { access }: SearchDeps,
  userId: string,
  filter: EventFilter,
  place: SearchPlace | undefined,
): Promise<number[]> {
  const nids: number[] = [];
  for (const { roomId, membership, forgotten } of (await access.memberships.of(userId)).values()) {
    if (forgotten || (membership !== 'join' && membership !== 'leave' && membership !== 'ban')) continue;
    if (filter.rooms && !filter.rooms.includes(roomId)) continue;
    if (filter.not_rooms?.includes(roomId)) continue;
    if (place?.group?.key === 'room_id' && place.group.value !== roomId) continue;
    const room = await access.rooms.get(roomId);
    if (!room || room.extremities.length === 0 || room.state.get('m.room.encryption', '')) continue;
    nids.push(room.nid);
    if (nids.length === MAX_ROOMS) break;
  }
  return nids;
}

interface Search {
  readonly rooms: readonly number[];
  readonly words: readonly string[];
  readonly keys: readonly SearchKey[];
  readonly order: 'recent' | 'rank';
  readonly senders?: readonly string[];
  readonly notSenders?: readonly string[];
  readonly limit: number;
  readonly place: SearchPlace | undefined;
}

/** A page of hits that the user may see, and where the next begins. */
async function collect(deps: SearchDeps, userId: string, filter: EventFilter, search: Search) {
  const { rooms, index } = deps;
  const found: Found[] = [];
  let { before = Number.POSITIVE_INFINITY, offset = 0 } = search.place ?? {};
  let total = 0;
  if (search.rooms.length === 0) return { found, count: 0, next: undefined };
  for (let reads = 0; reads < MAX_READS; reads++) {
    const { hits, count } = await index.search({ ...search, before, offset });
    total = count;
    const allowed = await readable(deps, userId, filter, hits);
    for (const hit of hits) {
      if (search.order === 'recent') before = hit.pos;
      else offset++;
      const event = allowed.get(hit.eventId);
      const room = event && (await rooms.get(event.roomId));
      if (room) found.push({ hit, event, room });
      if (found.length === search.limit)
        return { found, count: total, next: { before: finite(before), offset, group: search.place?.group } };
    }
    if (hits.length < search.limit) return { found, count: total, next: undefined };
  }
  return { found, count: total, next: { before: finite(before), offset, group: search.place?.group } };
}

function finite(position: number): number | undefined {
  return Number.isFinite(position) ? position : undefined;
}

async function readable(
  { rooms }: SearchDeps,
  userId: string,
  filter: EventFilter,
  hits: readonly SearchHit[],
): Promise<Map<string, StoredEvent>> {
  const allowed = new Map<string, StoredEvent>();
  const events = [...(await rooms.parts.events.getMany(hits.map(({ eventId }) => eventId))).values()];
  const wanted = events.filter((event) => !event.redactedBy && matchesEventFilter(filter, event));
  for (const [roomId, ofRoom] of Map.groupBy(wanted, (event) => event.roomId)) {
    const room = await rooms.get(roomId);
    if (!room) continue;
    const found = new Set(ofRoom);
    // Those that are shown redacted have no words to be found by.
    for (const event of await visibleEvents(rooms, room, userId, ofRoom))
      if (found.has(event)) allowed.set(event.eventId, event);
  }
  return allowed;
}

async function resultJson(
  deps: SearchDeps,
  reader: EventReader,
  { event_context: context }: Criteria,
  filter: EventFilter,
  { hit, event, room }: Found,
): Promise<string> {
  const [result] = await deps.clientEvents.json(room, [event], reader);
  const parts = [`"rank":${hit.rank}`, `"result":${result}`];
  if (context) {
    const around = await eventsAround(deps, room, event, {
      userId: reader.userId,
      before: Math.min(context.before_limit ?? DEFAULT_CONTEXT, MAX_CONTEXT),
      after: Math.min(context.after_limit ?? DEFAULT_CONTEXT, MAX_CONTEXT),
      filter: { types: filter.types, not_types: filter.not_types },
    });
    const inside = [
      `"start":"${placeToken(around.start)}"`,
      `"end":"${placeToken(around.end)}"`,
      `"events_before":${await deps.clientEvents.list(room, around.before, reader)}`,
      `"events_after":${await deps.clientEvents.list(room, around.after, reader)}`,
    ];
    if (context.include_profile)
      inside.push(
        `"profile_info":${await profilesJson(deps, event, [event, ...around.before, ...around.after])}`,
      );
    parts.push(`"context":{${inside.join(',')}}`);
  }
  return `{${parts.join(',')}}`;
}

async function profilesJson(
  { rooms }: SearchDeps,
  event: StoredEvent,
  shown: readonly StoredEvent[],
): Promise<string> {
  const profiles: Record<string, object> = {};
  for (const { stateKey, content } of await membersAt(rooms, event, shown))
    profiles[stateKey!] = { displayname: content.displayname, avatar_url: content.avatar_url };
  return JSON.stringify(profiles);
}

async function stateJson(
  { access }: SearchDeps,
  reader: EventReader,
  found: readonly Found[],
): Promise<string> {
  const states: string[] = [];
  for (const roomId of new Set(found.map(({ room }) => room.roomId))) {
    const { state } = await viewRoom(access, roomId, reader.userId);
    const ids = [...state.entries()].map(([, ref]) => ref.eventId);
    const events = [...(await access.rooms.parts.events.getMany(ids)).values()];
    states.push(`${JSON.stringify(roomId)}:${eventListJson(events, reader)}`);
  }
  return `{${states.join(',')}}`;
}

function groupsJson(found: readonly Found[], keys: readonly string[], next: SearchPlace | undefined) {
  const groups: Record<string, Record<string, object>> = {};
  for (const key of keys as Array<'room_id' | 'sender'>) {
    const byValue = Map.groupBy(found, ({ event }) => (key === 'sender' ? event.sender : event.roomId));
    const group: Record<string, object> = {};
    let order = 0;
    for (const [value, ofValue] of byValue)
      group[value] = {
        order: ++order,
        results: ofValue.map(({ event }) => event.eventId),
        // By rank, places count the results of all groups, and say nothing about one.
        ...(next?.before !== undefined && { next_batch: searchToken({ ...next, group: { key, value } }) }),
      };
    groups[key] = group;
  }
  return groups;
}

function groupsOf({ groupings }: Criteria): string[] {
  const keys = new Set((groupings?.group_by ?? []).map(({ key }) => key));
  for (const key of keys)
    if (key !== 'room_id' && key !== 'sender') throw invalidParam(`Unknown group key ${key}`);
  return [...keys];
}

function keysOf({ keys }: Criteria): SearchKey[] {
  const all = Object.keys(SEARCH_KINDS) as SearchKey[];
  if (keys === undefined) return all;
  for (const key of keys)
    if (!all.includes(key as SearchKey)) throw invalidParam(`Unknown search key ${key}`);
  return keys as SearchKey[];
}
