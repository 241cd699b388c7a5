import { onHurry } from '@trellis/cluster/owned-routes.ts';
import { badJson } from '@trellis/protocol/errors.ts';
import type { Notifier } from '@trellis/rooms/notifier.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';
import { integerOf } from './query-values.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';
import { RoomWaits } from './room-waits.ts';
import { parsePlaceToken, placeToken } from './sync/token.ts';

export interface EventStreamDeps {
  readonly access: RoomAccess;
  readonly clientEvents: ClientEvents;
  readonly notifier: Notifier;
}

const DEFAULT_TIMEOUT = 30_000;
const MAX_TIMEOUT = 5 * 60_000;
const MAX_EVENTS = 100;
/** Rooms that one request without `room_id` looks at. */
const MAX_ROOMS = 1_000;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ from: text, timeout: text, room_id: text });

/**
 * `GET /events`: new events of the user's rooms, or of one that they peek into (spec: "Room Previews"). Old clients
 * and guests use it; everyone else syncs.
 */
export function eventStreamRoutes(app: FastifyInstance, deps: EventStreamDeps): void {
  const { access, clientEvents, notifier } = deps;
  const { rooms, memberships } = access;
  const waits = new RoomWaits(rooms.parts.stream);
  notifier.onClosing(() => waits.wakeAll());

  app.get<{ Querystring: { from?: string; timeout?: string; room_id?: string } }>(
    '/_matrix/client/v3/events',
    { schema: { querystring }, config: { guests: true } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const { from: token, timeout, room_id: roomId } = request.query;
      if (reader.isGuest && roomId === undefined) throw badJson('Guests must say which room_id they want');
      const from = token ? parsePlaceToken(token) : rooms.parts.stream.current;
      const deadline = Date.now() + timeoutOf(timeout);
      await notifier.reach({ events: from });
      const aborted = new AbortController();
      onHurry(request, reply, () => aborted.abort());
      for (;;) {
        const watched =
          roomId === undefined ? await joinedRooms(reader.userId) : [await viewed(roomId, reader.userId)];
        const to = rooms.parts.stream.current;
        const news = await eventsBetween(watched, reader.userId, from, to);
        const left = deadline - Date.now();
        if (news.length > 0 || left <= 0 || aborted.signal.aborted || notifier.closing) {
          const written: string[] = [];
          for (const { room, events } of news)
            written.push(...(await clientEvents.json(room, events, reader)));
          const end = placeToken(endOf(news, to));
          return sendJson(
            reply,
            `{"start":"${placeToken(from)}","end":"${end}","chunk":[${written.join(',')}]}`,
          );
        }
        await waits.wait(
          watched.map((room) => room.roomId),
          to,
          left,
          aborted.signal,
        );
      }
    },
  );

  async function viewed(roomId: string, userId: string): Promise<Room> {
    return (await viewRoom(access, roomId, userId)).room;
  }

  async function joinedRooms(userId: string): Promise<Room[]> {
    const ids = (await memberships.joined(userId)).slice(0, MAX_ROOMS);
    return (await Promise.all(ids.map((id) => rooms.get(id)))).filter((room) => room !== undefined);
  }

  async function eventsBetween(watched: readonly Room[], userId: string, from: number, to: number) {
    const news: Array<{ room: Room; events: StoredEvent[] }> = [];
    for (const room of watched) {
      if ((room.timeline.newest?.pos ?? 0) <= from) continue;
      const found = await rooms.parts.events.timeline(room.nid, {
        after: from,
        before: to + 1,
        direction: 'forward',
        limit: MAX_EVENTS,
      });
      const events = await visibleEvents(rooms, room, userId, found);
      if (events.length > 0) news.push({ room, events });
    }
    return news;
  }
}

/** Where to go on: not beyond the last event given of a room that had more than fit. */
function endOf(news: ReadonlyArray<{ events: readonly StoredEvent[] }>, to: number): number {
  return Math.min(
    to,
    ...news.filter(({ events }) => events.length === MAX_EVENTS).map(({ events }) => events.at(-1)!.pos!),
  );
}

function timeoutOf(value: string | undefined): number {
  if (value === undefined) return DEFAULT_TIMEOUT;
  return Math.max(0, Math.min(integerOf('timeout', value), MAX_TIMEOUT));
}
