import { forbidden, invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, RoomEvent } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { signEvent } from '@trellis/protocol/make-event.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import { checkIncoming } from '@trellis/rooms/incoming-event.ts';
import type { InvitePolicy } from '@trellis/rooms/membership.ts';
import { storeOutOfBand } from '@trellis/rooms/out-of-band.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { stripForeign } from '@trellis/rooms/stripped-state.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { isObject } from '../outbound/answers.ts';
import { originOf } from './authentication.ts';
import {
  asVersion,
  type HandshakeDeps,
  incompatibleVersion,
  membershipEvent,
  verifiedEvent,
} from './handshake.ts';

export interface InviteDeps extends HandshakeDeps {
  /** Whether there is such a user here who can be invited. */
  readonly isLocalUser: (userId: string) => Promise<boolean>;
  readonly mayInvite?: InvitePolicy | undefined;
}

interface InviteBody {
  room_version: string;
  event: JsonObject;
  invite_room_state?: JsonValue[];
}

const MAX_ROOM_STATE = 200;
const roomStateSchema = Type.Optional(Type.Array(Type.Unknown(), { maxItems: MAX_ROOM_STATE }));
const v2Body = Type.Object({
  room_version: Type.String(),
  event: Type.Object({}),
  invite_room_state: roomStateSchema,
});
const v1Body = Type.Object({
  unsigned: Type.Optional(Type.Object({ invite_room_state: roomStateSchema })),
});

/**
 * Invites of our users by other servers.
 * https://spec.matrix.org/v1.18/server-server-api/#inviting-to-a-room
 */
export function inviteRoutes(app: FastifyInstance, deps: InviteDeps): void {
  app.put<{ Params: { roomId: string; eventId: string }; Body: InviteBody }>(
    '/_matrix/federation/v2/invite/:roomId/:eventId',
    { schema: { body: v2Body } },
    async (request) => ({
      event: await takeInvite(deps, originOf(request), request.params, request.body),
    }),
  );

  app.put<{ Params: { roomId: string; eventId: string }; Body: JsonObject }>(
    '/_matrix/federation/v1/invite/:roomId/:eventId',
    { schema: { body: v1Body } },
    async (request) => {
      const { unsigned } = request.body;
      const state = isObject(unsigned) ? (unsigned.invite_room_state as JsonValue[] | undefined) : undefined;
      // It can only be one of the first two room versions, whose events look the same.
      const body = { room_version: '1', event: request.body, invite_room_state: state };
      return asVersion('v1', { event: await takeInvite(deps, originOf(request), request.params, body) });
    },
  );
}

/** @returns the event with this server's signature */
async function takeInvite(
  deps: InviteDeps,
  origin: string,
  { roomId, eventId }: { roomId: string; eventId: string },
  body: InviteBody,
): Promise<JsonObject> {
  const { serverName, signingKey } = deps.rooms.parts;
  const known = await deps.rooms.get(roomId);
  const version = versionOf(body.room_version, known);
  const pdu = membershipEvent(body.event, roomId, 'invite', version, origin);
  const target = pdu.state_key as string;
  if (serverNameOf(target) !== serverName) throw invalidParam('The invited user is not one of this server');
  const invite = await verifiedEvent(pdu, eventId, version, deps.verifier);
  if (!(await deps.isLocalUser(target))) throw forbidden('There is no such user to invite');
  await deps.mayInvite?.({ roomId, sender: invite.sender, target, content: invite.content });
  const state = body.invite_room_state ?? [];
  if (version.roomIdIsCreateHash) await requireCreateEvent(deps, state, roomId, version);
  const signed = signEvent(invite.pdu, { version, key: signingKey, serverName });
  await keep(deps, origin, signed, stripForeign(state, roomId, version));
  return body.event.unsigned === undefined ? signed.pdu : { ...signed.pdu, unsigned: body.event.unsigned };
}

function versionOf(id: string, known: Room | undefined): RoomVersion {
  const version = roomVersion(id);
  if (!version) throw incompatibleVersion(id);
  // The first version of the endpoint does not tell 1 from 2.
  if (known && known.extremities.length > 0 && known.version.id !== id) {
    if (id !== '1' || known.version.eventIds !== 'server')
      throw invalidParam(`The room is of version ${known.version.id}`);
    return known.version;
  }
  return version;
}

/**
 * Where the room's id is the hash of its create event, an invite that comes without it tells nothing about the room
 * (`/invite`: the additional validation of `invite_room_state`). Other entries are shown to nobody but the invited
 * user; older servers send them stripped, so that they can't be verified.
 */
async function requireCreateEvent(
  deps: InviteDeps,
  state: readonly JsonValue[],
  roomId: string,
  version: RoomVersion,
): Promise<void> {
  const create = state.find((entry) => isObject(entry) && entry.type === 'm.room.create');
  if (!isObject(create)) throw invalidParam('invite_room_state has no m.room.create');
  const [checked] = await checkIncoming([create], version, deps.verifier);
  if (!checked?.event) throw invalidParam(`m.room.create in invite_room_state: ${checked?.error}`);
  if (checked.event.roomId !== roomId) throw invalidParam('invite_room_state is of another room');
}

/** In a room of ours the invite is an event like others; else only the invited user hears of it. */
async function keep(
  deps: InviteDeps,
  origin: string,
  invite: RoomEvent,
  strippedState: string,
): Promise<void> {
  const { rooms } = deps;
  const room = await rooms.get(invite.roomId);
  if (room?.isResident) return receiveInvite(deps, origin, invite);
  // Sent again: the user may have answered it since.
  if (await rooms.parts.events.get(invite.eventId)) return;
  if (!(await storeOutOfBand(rooms, invite, strippedState))) await receiveInvite(deps, origin, invite);
}

/** The inviting server sends it to the others of the room. */
async function receiveInvite({ receiver }: HandshakeDeps, origin: string, invite: RoomEvent): Promise<void> {
  const stored = await receiver.receive(origin, invite);
  if (stored?.status !== 'accepted') throw forbidden('The room does not allow the invite');
}
