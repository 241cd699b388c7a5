import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { isEventId, parseUserId } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Presence } from '@trellis/users/presence.ts';
import { isPresence } from '@trellis/users/presence-user.ts';
import type { Receipts } from '@trellis/users/receipts.ts';
import type { Typing } from '@trellis/users/typing.ts';

export interface EphemeralEduDeps {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly receipts: Receipts;
  readonly typing: Typing;
  readonly presence: Presence;
  /** By the room's server ACLs, which hold for EDUs about one room too. */
  readonly isServerAllowed: (room: Room, server: string) => Promise<boolean>;
}

type Handler = (origin: string, content: JsonObject) => Promise<void>;

/** What one EDU may tell of at the most; the rest is passed over. */
const MAX_RECEIPTS = 1000;
const MAX_PRESENCE = 1000;
/** Servers say again that a user types, well within this time. In milliseconds. */
const TYPING_TIMEOUT = 60_000;
const MAX_STATUS_LENGTH = 1024;
const MAX_THREAD_ID_LENGTH = 255;

/**
 * What other servers tell of their users in passing (spec: server-server API, "Typing Notifications", "Presence",
 * "Receipts"). A server speaks for its own users only, and only of rooms that they are in; all else is dropped.
 */
export function ephemeralEduHandlers(deps: EphemeralEduDeps): Map<string, Handler> {
  return new Map<string, Handler>([
    ['m.typing', (origin, content) => receiveTyping(deps, origin, content)],
    ['m.receipt', (origin, content) => receiveReceipts(deps, origin, content)],
    ['m.presence', (origin, content) => receivePresence(deps, origin, content)],
  ]);
}

async function receiveTyping(deps: EphemeralEduDeps, origin: string, content: JsonObject): Promise<void> {
  const { room_id: roomId, user_id: userId, typing } = content;
  if (!isUserOf(origin, userId) || typeof roomId !== 'string' || typeof typing !== 'boolean') return;
  const room = await roomOpenTo(deps, origin, roomId);
  if (!room || !mayBeJoined(room, userId)) return;
  if (typing) await deps.typing.start(roomId, userId, TYPING_TIMEOUT);
  else await deps.typing.stop(roomId, userId);
}

async function receiveReceipts(deps: EphemeralEduDeps, origin: string, content: JsonObject): Promise<void> {
  let left = MAX_RECEIPTS;
  for (const [roomId, ofRoom] of Object.entries(content)) {
    const users = Object.entries(objectAt(objectAt(ofRoom)['m.read'])).slice(0, left);
    left -= Math.max(1, users.length);
    if (left <= 0) return;
    const room = users.length > 0 ? await roomOpenTo(deps, origin, roomId) : undefined;
    if (!room) continue;
    await Promise.all(users.map(([userId, receipt]) => receiveReceipt(deps, origin, room, userId, receipt)));
  }
}

async function receiveReceipt(
  { rooms, receipts }: EphemeralEduDeps,
  origin: string,
  room: Room,
  userId: string,
  receipt: JsonValue,
): Promise<void> {
  const { event_ids: eventIds, data } = objectAt(receipt);
  const eventId = Array.isArray(eventIds) ? eventIds[0] : undefined;
  const { ts, thread_id: threadId = null } = objectAt(data);
  if (!isUserOf(origin, userId) || !mayBeJoined(room, userId)) return;
  if (typeof eventId !== 'string' || !isOpaqueId(eventId) || !Number.isSafeInteger(ts)) return;
  if (threadId !== null && !isThreadId(threadId)) return;
  const event = await rooms.parts.events.get(eventId);
  if (event && event.roomId !== room.roomId) return;
  await receipts.set({
    roomId: room.roomId,
    userId,
    type: 'm.read',
    threadId,
    eventId,
    eventPos: event?.pos ?? null,
    ts: Math.max(0, ts as number),
  });
}

async function receivePresence(deps: EphemeralEduDeps, origin: string, content: JsonObject): Promise<void> {
  if (!deps.presence.enabled || !Array.isArray(content.push)) return;
  for (const update of content.push.slice(0, MAX_PRESENCE)) {
    const { user_id: userId, presence, status_msg: status, ...times } = objectAt(update);
    if (!isUserOf(origin, userId) || typeof presence !== 'string' || !isPresence(presence)) continue;
    if ((await deps.memberships.joined(userId)).length === 0) continue;
    const ago = times.last_active_ago;
    deps.presence.receive(userId, {
      presence,
      statusMsg: typeof status === 'string' && status !== '' ? status.slice(0, MAX_STATUS_LENGTH) : null,
      lastActiveTs: Number.isSafeInteger(ago) ? Date.now() - Math.max(0, ago as number) : 0,
      currentlyActive: times.currently_active === true,
    });
  }
}

/** The room when this server is in it and lets the other one have a say. */
async function roomOpenTo(
  { rooms, isServerAllowed }: EphemeralEduDeps,
  origin: string,
  roomId: string,
): Promise<Room | undefined> {
  const room = roomId.startsWith('!') ? await rooms.get(roomId) : undefined;
  if (!room?.isResident || !room.servers.has(origin)) return undefined;
  return (await isServerAllowed(room, origin)) ? room : undefined;
}

/** A receipt may be for an event that is not here; then its id is whatever the other server calls it. */
function isOpaqueId(id: string): boolean {
  return id.length > 0 && id.length <= 255 && !id.includes('\0');
}

/** While most members are not known, who says nothing else of a user believes the server. */
function mayBeJoined(room: Room, userId: string): boolean {
  return room.isJoined(userId) || (room.partial !== undefined && room.member(userId) === undefined);
}

function isUserOf(origin: string, userId: JsonValue | undefined): userId is string {
  return typeof userId === 'string' && parseUserId(userId)?.serverName === origin;
}

function isThreadId(threadId: JsonValue): threadId is string {
  return (
    typeof threadId === 'string' &&
    threadId.length <= MAX_THREAD_ID_LENGTH &&
    (threadId === 'main' || isEventId(threadId))
  );
}

function objectAt(value: JsonValue | undefined): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {};
}
