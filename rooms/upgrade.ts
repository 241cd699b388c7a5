import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import { type JsonObject, splitStateKey } from '@trellis/protocol/event.ts';
import { powerLevels } from '@trellis/protocol/power-levels.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadAuthState } from './auth-state.ts';
import { type CreateRoomParts, type CreateRoomRequest, createRoom } from './create-room.ts';
import type { Room } from './room.ts';
import { sendEvent } from './send.ts';
import { closedLevels, upgradedLevels } from './upgrade-levels.ts';

/** State that goes along as it is (spec: "Room Upgrades", step 3); power levels are translated. */
const COPIED_TYPES = [
  'm.room.server_acl',
  'm.room.encryption',
  'm.room.name',
  'm.room.avatar',
  'm.room.topic',
  'm.room.guest_access',
  'm.room.history_visibility',
  'm.room.join_rules',
] as const;
/** What a room is like in which these were never set, so that no preset changes it. */
const DEFAULTS: Partial<Record<(typeof COPIED_TYPES)[number], JsonObject>> = {
  'm.room.guest_access': { guest_access: 'forbidden' },
  'm.room.history_visibility': { history_visibility: 'shared' },
  'm.room.join_rules': { join_rule: 'invite' },
};
/** Children of a space, and bans, that go along at the most. */
const MAX_CHILDREN = 400;
const MAX_BANS = 500;

export interface UpgradeRequest {
  readonly newVersion: string;
  readonly additionalCreators?: readonly string[];
}

/**
 * Replaces a room by one of another version (spec: "Room Upgrades"): the numbered steps are the spec's.
 *
 * @returns the new room's id
 */
export async function upgradeRoom(
  parts: CreateRoomParts,
  roomId: string,
  userId: string,
  request: UpgradeRequest,
): Promise<string> {
  const { rooms, aliases } = parts;
  const version = roomVersion(request.newVersion);
  if (!version)
    throw new MatrixError(
      400,
      'M_UNSUPPORTED_ROOM_VERSION',
      `Room version ${request.newVersion} is not supported`,
    );
  const room = await rooms.get(roomId);
  if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
  const old = await oldState(parts, room);
  // 1.
  const levels = powerLevels(old.levels?.content, old.create, room.version);
  if (levels.user(userId) < levels.toSend('m.room.tombstone', true))
    throw forbidden('You cannot upgrade this room');

  // 2. and 3.
  const additional = request.additionalCreators ?? [];
  const power = upgradedLevels(old, version, userId, additional);
  const replacement = await createRoom(parts, userId, {
    room_version: version.id,
    preset: 'private_chat',
    creation_content: creationContent(room, old.create, version, additional),
    power_level_content_override: power.initial,
    initial_state: initialState(old),
  });
  await banAgain(parts, room, replacement, userId);
  if (power.final !== power.initial)
    await sendEvent(rooms, replacement, state('m.room.power_levels', userId, power.final));

  // 4.
  await aliases.move(roomId, replacement);
  await moveCanonicalAlias(parts, old.canonicalAlias, roomId, replacement, userId);
  if (room.published) {
    await aliases.publish(replacement, true);
    await aliases.publish(roomId, false);
  }
  // 5.
  const tombstone = { body: 'This room has been replaced', replacement_room: replacement };
  await sendEvent(rooms, roomId, state('m.room.tombstone', userId, tombstone));
  // 6.
  if (old.levels)
    await ifAllowed(
      sendEvent(
        rooms,
        roomId,
        state('m.room.power_levels', userId, closedLevels(old.levels.content, room.version)),
      ),
    );
  return replacement;
}

interface OldState {
  readonly create: StoredEvent;
  readonly levels: StoredEvent | undefined;
  readonly canonicalAlias: StoredEvent | undefined;
  readonly copied: readonly StoredEvent[];
}

async function oldState({ rooms }: CreateRoomParts, room: Room): Promise<OldState> {
  const loaded = await loadAuthState(
    rooms,
    room.state,
    ['m.room.create', 'm.room.power_levels', 'm.room.canonical_alias', ...COPIED_TYPES].map(
      (type) => [type, ''] as const,
    ),
  );
  const create = loaded.get('m.room.create', '');
  if (!create) throw new Error(`the room ${room.roomId} has no create event`);
  const copied = COPIED_TYPES.flatMap((type) => loaded.get(type, '') ?? []);
  if (create.content.type === 'm.space') copied.push(...(await childrenOf(rooms, room)));
  return {
    create,
    levels: loaded.get('m.room.power_levels', ''),
    canonicalAlias: loaded.get('m.room.canonical_alias', ''),
    copied,
  };
}

/** A space without its children would be none. */
async function childrenOf(rooms: CreateRoomParts['rooms'], room: Room): Promise<StoredEvent[]> {
  const ids: string[] = [];
  for (const [key, ref] of room.state.entries())
    if (splitStateKey(key)[0] === 'm.space.child') ids.push(ref.eventId);
  const children = [...(await rooms.parts.events.getMany(ids)).values()];
  return children
    .filter(({ content }) => Array.isArray(content.via) && content.via.length > 0)
    .slice(0, MAX_CHILDREN);
}

function creationContent(
  room: Room,
  create: StoredEvent,
  version: RoomVersion,
  additional: readonly string[],
): JsonObject {
  const { type, 'm.federate': federate } = create.content;
  const lastEvent = room.extremities[0];
  return {
    ...(type !== undefined && { type }),
    ...(federate !== undefined && { 'm.federate': federate }),
    ...(version.privilegedCreators && additional.length > 0 && { additional_creators: [...additional] }),
    predecessor: {
      room_id: room.roomId,
      // Since room version 12 it may be left out, and says nothing that anybody needs.
      ...(!version.roomIdIsCreateHash && lastEvent !== undefined && { event_id: lastEvent }),
    },
  };
}

function initialState({ copied }: OldState): NonNullable<CreateRoomRequest['initial_state']> {
  const initial = copied.map(({ type, stateKey, content }) => ({ type, state_key: stateKey ?? '', content }));
  for (const [type, content] of Object.entries(DEFAULTS))
    if (!copied.some((event) => event.type === type)) initial.push({ type, state_key: '', content });
  return initial;
}

/** Bans are the upgrader's to repeat, unlike other memberships; else the banned could come straight back. */
async function banAgain(
  { rooms, membership }: CreateRoomParts,
  room: Room,
  replacement: string,
  userId: string,
): Promise<void> {
  const banned = [...room.members()].filter(([, member]) => member.membership === 'ban').slice(0, MAX_BANS);
  const events = await rooms.parts.events.getMany(banned.map(([, member]) => member.eventId));
  for (const [target, { eventId }] of banned) {
    const reason = events.get(eventId)?.content.reason;
    await ifAllowed(
      membership.ban(replacement, userId, target, typeof reason === 'string' ? { reason } : {}),
    );
  }
}

async function moveCanonicalAlias(
  { rooms, aliases }: CreateRoomParts,
  event: StoredEvent | undefined,
  from: string,
  to: string,
  userId: string,
): Promise<void> {
  if (!event) return;
  const moved = new Set(await aliases.ofRoom(to));
  const { alias, alt_aliases: alternatives } = event.content;
  const content: JsonObject = {};
  if (typeof alias === 'string' && moved.has(alias)) content.alias = alias;
  const kept = Array.isArray(alternatives)
    ? alternatives.filter((entry) => typeof entry === 'string' && moved.has(entry))
    : [];
  if (kept.length > 0) content.alt_aliases = kept;
  if (Object.keys(content).length === 0) return;
  await ifAllowed(sendEvent(rooms, from, state('m.room.canonical_alias', userId, {})));
  await ifAllowed(sendEvent(rooms, to, state('m.room.canonical_alias', userId, content)));
}

function state(type: string, sender: string, content: JsonObject) {
  return { type, sender, stateKey: '', content };
}

/** For steps that an upgrade goes on without. */
async function ifAllowed(step: Promise<unknown>): Promise<void> {
  try {
    await step;
  } catch (error) {
    if (!(error instanceof MatrixError)) throw error;
  }
}
