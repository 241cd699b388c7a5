import { notFound } from '@trellis/protocol/errors.ts';
import { splitStateKey } from '@trellis/protocol/event.ts';
import { type EventFilter, matchesEventFilter } from '@trellis/protocol/filters.ts';
import { stateAfterEvent } from '@trellis/rooms/event-state.ts';
import { type HistoryParts, readHistory } from '@trellis/rooms/history.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';
import { eventListJson } from './event-json.ts';
import { eventFilterOf, limitOf } from './query-values.ts';
import { visibleEvent } from './room-events.ts';
import { placeToken } from './sync/token.ts';

export interface ContextDeps {
  readonly rooms: Rooms;
  readonly history: HistoryParts;
  readonly clientEvents: ClientEvents;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 100;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ limit: text, filter: text });

/** `GET /rooms/{roomId}/context/{eventId}` (spec: "Event Context"). */
export function contextRoutes(app: FastifyInstance, deps: ContextDeps): void {
  const { rooms, clientEvents } = deps;
  app.get<{ Params: { roomId: string; eventId: string }; Querystring: { limit?: string; filter?: string } }>(
    '/_matrix/client/v3/rooms/:roomId/context/:eventId',
    { schema: { querystring }, config: { guests: true } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const filter = eventFilterOf(request.query.filter);
      const limit = limitOf(request.query.limit, DEFAULT_LIMIT, MAX_LIMIT);
      const found = await visibleEvent(rooms, request.params.roomId, request.params.eventId, reader.userId);
      if (!found) throw notFound('Event not found');
      const { room, event } = found;
      const around = await eventsAround(deps, room, event, {
        userId: reader.userId,
        before: Math.floor(limit / 2),
        after: Math.ceil(limit / 2),
        filter,
      });
      const shown = [event, ...around.before, ...around.after];
      const state = await stateAt(rooms, around.after.at(-1) ?? event, filter, shown);
      const parts = [
        `"start":"${placeToken(around.start)}"`,
        `"end":"${placeToken(around.end)}"`,
        `"event":${(await clientEvents.json(room, [event], reader))[0]}`,
        `"events_before":${await clientEvents.list(room, around.before, reader)}`,
        `"events_after":${await clientEvents.list(room, around.after, reader)}`,
        `"state":${eventListJson(state, reader)}`,
      ];
      return sendJson(reply, `{${parts.join(',')}}`);
    },
  );
}

export interface Surroundings {
  /** Newest first. */
  readonly before: StoredEvent[];
  /** Oldest first. */
  readonly after: StoredEvent[];
  /** The places where paging on goes, backward and forward. */
  readonly start: number;
  readonly end: number;
}

/** What happened just before and after an event, as far as the user may see it. */
export async function eventsAround(
  { history, ignoredUsers }: Pick<ContextDeps, 'history' | 'ignoredUsers'>,
  room: Room,
  event: StoredEvent,
  query: { userId: string; before: number; after: number; filter?: EventFilter },
): Promise<Surroundings> {
  const pos = event.pos!;
  const ignored = await ignoredUsers(query.userId);
  const common = { userId: query.userId, filter: query.filter, ignored };
  const [before, after] = await Promise.all([
    readHistory(history, room, { ...common, direction: 'backward', from: pos - 1, limit: query.before }),
    readHistory(history, room, { ...common, direction: 'forward', from: pos, limit: query.after }),
  ]);
  return {
    before: before.events,
    after: after.events,
    start: (before.events.at(-1)?.pos ?? pos) - 1,
    end: after.events.at(-1)?.pos ?? pos,
  };
}

async function stateAt(
  rooms: Rooms,
  last: StoredEvent,
  filter: EventFilter | undefined,
  shown: readonly StoredEvent[],
): Promise<StoredEvent[]> {
  const state = await stateAfterEvent(rooms, last);
  const members = filter?.lazy_load_members ? new Set(shown.map((event) => event.sender)) : undefined;
  const ids: string[] = [];
  for (const [key, ref] of state.entries()) {
    const [type, stateKey] = splitStateKey(key);
    if (!members || type !== 'm.room.member' || members.has(stateKey)) ids.push(ref.eventId);
  }
  const events = await rooms.parts.events.getMany(ids);
  return [...events.values()].filter((event) => !filter || matchesEventFilter(filter, event));
}
