import { stateKeyOf } from '@trellis/protocol/event.ts';
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
import { directionOf, eventFilterOf, limitOf } from './query-values.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';
import { parsePlaceToken, placeToken } from './sync/token.ts';

export interface MessagesDeps {
  readonly access: RoomAccess;
  readonly history: HistoryParts;
  readonly clientEvents: ClientEvents;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 1000;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ from: text, to: text, dir: text, limit: text, filter: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** `GET /rooms/{roomId}/messages` (spec: "Getting events for a room"). */
export function messagesRoutes(app: FastifyInstance, deps: MessagesDeps): void {
  const { access, history, clientEvents, ignoredUsers } = deps;
  app.get<{ Params: { roomId: string }; Querystring: Query }>(
    '/_matrix/client/v3/rooms/:roomId/messages',
    { schema: { querystring }, config: { guests: true } },
    async (request, reply) => {
      const { userId, deviceId } = requesterOf(request);
      const { query } = request;
      const { room, end: viewEnd } = await viewRoom(access, request.params.roomId, userId);
      const direction = directionOf(query.dir);
      const filter = eventFilterOf(query.filter);
      const from = startOf(query.from, direction, Math.min(viewEnd, newestPlace(access.rooms, room)));
      const to = query.to === undefined ? undefined : parsePlaceToken(query.to);
      const page = await readHistory(history, room, {
        userId,
        direction,
        from,
        to: direction === 'forward' ? Math.min(to ?? viewEnd, viewEnd) : to,
        limit: Math.min(limitOf(query.limit, filter?.limit ?? DEFAULT_LIMIT, MAX_LIMIT), MAX_LIMIT),
        filter,
        ignored: await ignoredUsers(userId),
      });
      const parts = [
        `"start":${JSON.stringify(query.from ?? placeToken(from))}`,
        `"chunk":${await clientEvents.list(room, page.events, { userId, deviceId })}`,
      ];
      if (page.end !== undefined) parts.push(`"end":"${placeToken(page.end)}"`);
      if (filter?.lazy_load_members) {
        const newest = direction === 'forward' ? page.events.at(-1) : page.events[0];
        const members = await membersAt(access.rooms, newest, page.events);
        parts.push(`"state":${eventListJson(members, { userId, deviceId })}`);
      }
      return sendJson(reply, `{${parts.join(',')}}`);
    },
  );
}

function startOf(token: string | undefined, direction: 'forward' | 'backward', end: number): number {
  if (token === undefined || token === '') return direction === 'forward' ? Number.MIN_SAFE_INTEGER : end;
  const place = parsePlaceToken(token);
  return direction === 'forward' ? place : Math.min(place, end);
}

/** Nothing of the room lies beyond this place now. */
function newestPlace(rooms: Rooms, room: Room): number {
  return Math.max(rooms.parts.stream.current, room.timeline.newest?.pos ?? 0);
}

/** Member events of the senders of a page (spec: "Lazy-loading room members"), as they were at its newest event. */
export async function membersAt(
  rooms: Rooms,
  newest: StoredEvent | undefined,
  events: readonly StoredEvent[],
): Promise<StoredEvent[]> {
  if (!newest) return [];
  const state = await stateAfterEvent(rooms, newest);
  const senders = new Set(events.map((event) => event.sender));
  const ids = [...senders].flatMap(
    (sender) => state.getKey(stateKeyOf('m.room.member', sender))?.eventId ?? [],
  );
  const members = await rooms.parts.events.getMany(ids);
  return ids.flatMap((id) => members.get(id) ?? []);
}
