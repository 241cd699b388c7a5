import { badJson, forbidden, invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { checkContentHash } from '@trellis/protocol/make-event.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import { checkIncoming, type EventVerifier } from '@trellis/rooms/incoming-event.ts';
import type { OwnMembership } from '@trellis/rooms/member-template.ts';
import type { Receiver } from '@trellis/rooms/receive.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { isServerAllowed } from '@trellis/rooms/server-acl.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { isObject } from '../outbound/answers.ts';

/** What the resident side of the handshakes for memberships works with. */
export interface HandshakeDeps {
  readonly rooms: Rooms;
  readonly receiver: Pick<Receiver, 'receive'>;
  readonly verifier: EventVerifier;
  /** Throws when the room is full. */
  readonly requireSpace?: ((room: Room) => void) | undefined;
}

/** The room, which this server has to be in and the other one may take part in. */
export async function residentRoom(rooms: Rooms, roomId: string, origin: string): Promise<Room> {
  const room = await rooms.get(roomId);
  if (!room?.isResident) throw notFound('Unknown room');
  if (!(await isServerAllowed(rooms, room, origin))) throw forbidden('Your server is banned from the room');
  return room;
}

/** The same for answers that take the room's members: while they are being fetched, others are to be asked. */
export async function completeRoom(rooms: Rooms, roomId: string, origin: string): Promise<Room> {
  const room = await residentRoom(rooms, roomId, origin);
  if (room.partial) throw notFound('The members of the room are not known here yet');
  return room;
}

/** A template is made for a user of the server that asks. */
export function requireUserOf(origin: string, userId: string): void {
  if (parseUserId(userId)?.serverName !== origin) throw forbidden('The user is not one of your server');
}

/** @param ver the query parameter, repeated for each version that the other server knows */
export function requireVersion(
  room: Room,
  ver: string | readonly string[] | undefined,
  byDefault: string[],
): void {
  const known = ver === undefined ? byDefault : typeof ver === 'string' ? [ver] : ver;
  if (known.includes(room.version.id)) return;
  throw incompatibleVersion(room.version.id);
}

export function incompatibleVersion(id: string): MatrixError {
  return new MatrixError(
    400,
    'M_INCOMPATIBLE_ROOM_VERSION',
    'Your server does not support the version of this room',
    { room_version: id },
  );
}

export interface SentEvent {
  readonly roomId: string;
  readonly eventId: string;
  readonly body: JsonValue | undefined;
}

/**
 * What is checked before an event is looked at any further: that it is a user's own change of membership, of the kind
 * that the endpoint is for, sent by the user's server (spec: `/send_join`, `/send_leave`, `/send_knock`).
 */
export function ownMembershipEvent(
  { body, roomId }: SentEvent,
  membership: OwnMembership,
  version: RoomVersion,
  origin: string,
): Pdu {
  const pdu = membershipEvent(body, roomId, membership, version, origin);
  if (pdu.state_key !== pdu.sender) throw invalidParam('state_key is not the sender');
  return pdu;
}

/** The part of that which holds for invites too. `unsigned`, which nobody answers for, is taken off. */
export function membershipEvent(
  body: JsonValue | undefined,
  roomId: string,
  membership: OwnMembership | 'invite',
  version: RoomVersion,
  origin: string,
): Pdu {
  if (!isObject(body)) throw badJson('An event is an object');
  const { unsigned: _unsigned, ...pdu } = body;
  checkPdu(pdu, version);
  if (pdu.room_id !== roomId) throw invalidParam('The event is of another room');
  if (pdu.type !== 'm.room.member' || typeof pdu.state_key !== 'string')
    throw invalidParam('The event is no m.room.member');
  if ((pdu.content as JsonObject).membership !== membership)
    throw invalidParam(`The event is no ${membership}`);
  if (parseUserId(pdu.sender as string)?.serverName !== origin)
    throw invalidParam('The sender is not a user of your server');
  return pdu;
}

/** Steps 1 to 3 of the checks on a received PDU. What a handshake is about must be whole, so nothing is redacted. */
export async function verifiedEvent(
  pdu: Pdu,
  eventId: string,
  version: RoomVersion,
  verifier: EventVerifier,
): Promise<RoomEvent> {
  if (!checkContentHash({ pdu, version })) throw invalidParam('The content hash of the event is wrong');
  const [checked] = await checkIncoming([pdu], version, verifier);
  if (!checked?.event) throw invalidParam(checked?.error ?? 'The event is not valid');
  if (checked.event.eventId !== eventId) throw invalidParam('The event has another event id');
  return checked.event;
}

/** Puts the event into the room, from where it goes on to the room's other servers. */
export async function accept(deps: HandshakeDeps, origin: string, event: RoomEvent): Promise<StoredEvent> {
  const stored = await deps.receiver.receive(origin, event, { relayFrom: origin });
  if (!stored) throw new MatrixError(403, 'M_FORBIDDEN', 'What the event builds on could not be had');
  if (stored.status !== 'accepted') throw forbidden('The room does not allow it');
  return stored;
}

/** Version 1 of some endpoints answers a pair of status and body. */
export function asVersion(version: 'v1' | 'v2', body: object): object {
  return version === 'v1' ? [200, body] : body;
}
