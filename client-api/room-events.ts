import { notFound } from '@trellis/protocol/errors.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';
import { eventJson } from './event-json.ts';
import { unredactedContent, withContent } from './unredacted.ts';

export interface RoomEventDeps {
  readonly rooms: Rooms;
  readonly clientEvents: ClientEvents;
}

/** Single events (spec: "Getting events for a room"), by room and id, and in the old way by id alone. */
export function roomEventRoutes(app: FastifyInstance, { rooms, clientEvents }: RoomEventDeps): void {
  app.get<{ Params: { roomId: string; eventId: string } }>(
    '/_matrix/client/v3/rooms/:roomId/event/:eventId',
    { config: { guests: true } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const { roomId, eventId } = request.params;
      const found = await visibleEvent(rooms, roomId, eventId, reader.userId);
      if (!found) throw notFound('Event not found');
      const content = await unredactedContent(request, rooms, found);
      if (content) return sendJson(reply, withContent(eventJson(found.event, reader), content));
      return sendJson(reply, (await clientEvents.json(found.room, [found.event], reader))[0]!);
    },
  );

  app.get<{ Params: { eventId: string } }>('/_matrix/client/v3/events/:eventId', async (request, reply) => {
    const reader = requesterOf(request);
    const { eventId } = request.params;
    const event = await rooms.parts.events.get(eventId);
    const found = event && (await visibleEvent(rooms, event.roomId, eventId, reader.userId));
    if (!found) throw notFound('Event not found');
    return sendJson(reply, (await clientEvents.json(found.room, [found.event], reader))[0]!);
  });
}

/** An event of a room that has its place there, if the user may see it. */
export async function visibleEvent(
  rooms: Rooms,
  roomId: string,
  eventId: string,
  userId: string,
): Promise<{ room: Room; event: StoredEvent } | undefined> {
  const [room, event] = await Promise.all([rooms.get(roomId), rooms.parts.events.get(eventId)]);
  if (!room || event?.roomId !== roomId || event.pos === undefined || event.status !== 'accepted')
    return undefined;
  const [visible] = await visibleEvents(rooms, room, userId, [event]);
  return visible && { room, event: visible };
}
