import { badJson, forbidden, invalidParam } from '@trellis/protocol/errors.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { isOfThread } from '@trellis/rooms/thread-of.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { type AccountData, FULLY_READ } from '@trellis/users/account-data.ts';
import type { Receipts } from '@trellis/users/receipts.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface ReceiptsDeps {
  readonly rooms: Rooms;
  readonly receipts: Receipts;
  readonly accountData: AccountData;
}

const RECEIPT_TYPES = ['m.read', 'm.read.private'];

const markersBody = Type.Object({
  'm.fully_read': Type.Optional(Type.String()),
  'm.read': Type.Optional(Type.String()),
  'm.read.private': Type.Optional(Type.String()),
});
type MarkersBody = Partial<Record<keyof typeof markersBody.properties, string>>;

/** How far the user has read (spec: "Receipts", "Read and unread markers"). */
export function receiptRoutes(app: FastifyInstance, { rooms, receipts, accountData }: ReceiptsDeps): void {
  app.post<{
    Params: { roomId: string; receiptType: string; eventId: string };
    Body: unknown;
  }>('/_matrix/client/v3/rooms/:roomId/receipt/:receiptType/:eventId', async (request) => {
    const { roomId, receiptType, eventId } = request.params;
    const { userId } = requesterOf(request);
    const threadId = threadIn(request.body);
    const room = await joinedRoom(roomId, userId);
    if (receiptType !== FULLY_READ && !RECEIPT_TYPES.includes(receiptType))
      throw invalidParam('Receipts are of type m.read, m.read.private or m.fully_read');
    const event = await eventOf(room, eventId);
    if (receiptType === FULLY_READ) {
      if (threadId !== null) throw invalidParam('m.fully_read knows no threads');
      await setFullyRead(userId, room, event);
    } else await setReceipt(userId, room, event, receiptType, threadId);
    return {};
  });

  app.post<{ Params: { roomId: string }; Body: MarkersBody }>(
    '/_matrix/client/v3/rooms/:roomId/read_markers',
    { schema: { body: markersBody } },
    async (request) => {
      const { userId } = requesterOf(request);
      const room = await joinedRoom(request.params.roomId, userId);
      const events = new Map<string, StoredEvent>();
      for (const [type, eventId] of Object.entries(request.body))
        if (type === FULLY_READ || RECEIPT_TYPES.includes(type))
          events.set(type, await eventOf(room, eventId));
      for (const [type, event] of events)
        if (type === FULLY_READ) await setFullyRead(userId, room, event);
        else await setReceipt(userId, room, event, type, null);
      return {};
    },
  );

  async function joinedRoom(roomId: string, userId: string): Promise<Room> {
    const room = await rooms.get(roomId);
    if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
    return room;
  }

  async function eventOf(room: Room, eventId: string): Promise<StoredEvent> {
    const event = await rooms.parts.events.get(eventId);
    if (event?.roomId !== room.roomId || event.status === 'rejected')
      throw invalidParam('That is no event of this room');
    return event;
  }

  async function setReceipt(
    userId: string,
    room: Room,
    event: StoredEvent,
    type: string,
    threadId: string | null,
  ): Promise<void> {
    if (threadId !== null && !(await isOfThread(rooms.parts.events, event, threadId)))
      throw invalidParam(`The event is not related to the thread ${threadId}`);
    await receipts.set({
      userId,
      roomId: room.roomId,
      type,
      threadId,
      eventId: event.eventId,
      eventPos: event.pos ?? null,
      ts: Date.now(),
    });
  }

  /** The marker goes forward only. */
  async function setFullyRead(userId: string, room: Room, event: StoredEvent): Promise<void> {
    const current = await accountData.get(userId, room.roomId, FULLY_READ);
    const before =
      typeof current?.event_id === 'string' ? await rooms.parts.events.get(current.event_id) : undefined;
    if (before?.pos !== undefined && event.pos !== undefined && event.pos <= before.pos) return;
    await accountData.update(userId, room.roomId, FULLY_READ, () => ({ event_id: event.eventId }));
  }
}

/** Clients leave the body out when they have nothing to say in it. */
function threadIn(body: unknown = {}): string | null {
  if (typeof body !== 'object' || body === null) throw badJson('The body is not a JSON object');
  const { thread_id: threadId } = body as { thread_id?: unknown };
  if (threadId === undefined) return null;
  if (typeof threadId !== 'string' || threadId === '' || threadId.length > 255 || threadId.includes('\0'))
    throw invalidParam('thread_id must be a non-empty string');
  return threadId;
}
