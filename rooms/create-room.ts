import { randomBytes } from 'node:crypto';
import { invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, RoomEvent } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import type { Aliases } from './aliases.ts';
import type { Appended } from './append.ts';
import type { Membership, Profile } from './membership.ts';
import type { Rooms } from './rooms.ts';
import { appendBuilt, appendDraft, type Draft } from './send.ts';

/** The body of `/createRoom`, its shape checked. */
export interface CreateRoomRequest {
  visibility?: 'public' | 'private';
  room_alias_name?: string;
  name?: string;
  topic?: string;
  invite?: string[];
  room_version?: string;
  creation_content?: JsonObject;
  initial_state?: Array<{ type: string; state_key?: string; content: JsonObject }>;
  preset?: 'private_chat' | 'public_chat' | 'trusted_private_chat';
  is_direct?: boolean;
  power_level_content_override?: JsonObject;
}

export interface CreateRoomParts {
  readonly rooms: Rooms;
  readonly membership: Membership;
  readonly aliases: Aliases;
  readonly profile: (userId: string) => Promise<Profile>;
  readonly defaultVersion: string;
  /** Throws when the user may create no more rooms. */
  readonly mayCreate?: (creator: string) => Promise<void>;
}

const PRESETS = {
  private_chat: { join_rule: 'invite', guest_access: 'can_join' },
  trusted_private_chat: { join_rule: 'invite', guest_access: 'can_join' },
  public_chat: { join_rule: 'public', guest_access: 'forbidden' },
} as const;

/** Rooms made in one moment that differ in nothing but it. */
const MAX_ALIKE = 1_000;

/** Creates a room with all that the request implies, in the order that the spec gives, and invites. */
export async function createRoom(
  parts: CreateRoomParts,
  creator: string,
  request: CreateRoomRequest,
): Promise<string> {
  const { rooms, aliases, membership } = parts;
  const version = chosenVersion(parts, request);
  await parts.mayCreate?.(creator);
  const preset = request.preset ?? (request.visibility === 'public' ? 'public_chat' : 'private_chat');
  const invitees = [...new Set(request.invite ?? [])];
  for (const invitee of invitees)
    if (!parseUserId(invitee)) throw invalidParam(`${invitee} is not a user id`);

  const alias =
    request.room_alias_name === undefined ? undefined : await aliases.free(request.room_alias_name);
  const content = creationContent(request, version, creator, preset, invitees);
  const createEvent = await newRoom(rooms, version, creator, content);
  const { roomId } = createEvent;
  if (alias) await aliases.set(alias, roomId, creator, [rooms.parts.serverName]);
  try {
    await appendInitial(parts, creator, request, { createEvent, version, preset, alias, invitees });
  } catch (error) {
    await giveUp(parts, roomId, creator, alias);
    throw error;
  }
  if (request.visibility === 'public') await aliases.publish(roomId, true);
  for (const invitee of invitees)
    await membership.invite(roomId, creator, invitee, request.is_direct ? { is_direct: true } : {});
  return roomId;
}

/**
 * Makes a room and its create event. Where the room's id is the event's hash, two rooms that begin alike in the same
 * millisecond would be one: the later begins a little later.
 */
async function newRoom(
  rooms: Rooms,
  version: RoomVersion,
  creator: string,
  content: JsonObject,
): Promise<RoomEvent> {
  const { serverName, signingKey } = rooms.parts;
  // Rounded up: whoever noted the time before they asked finds no event of that time (`timestamp_to_event`).
  const now = Date.now() + 1;
  for (let later = 0; later < MAX_ALIKE; later++) {
    const createEvent = buildEvent(
      {
        ...(version.roomIdIsCreateHash
          ? {}
          : { room_id: `!${randomBytes(14).toString('base64url')}:${serverName}` }),
        sender: creator,
        type: 'm.room.create',
        state_key: '',
        content,
        prev_events: [],
        auth_events: [],
        depth: 1,
        origin_server_ts: now + later,
      },
      { version, key: signingKey, serverName },
    );
    checkPdu(createEvent.pdu, version);
    if (await rooms.createNew(createEvent.roomId, version)) return createEvent;
  }
  throw new Error('too many rooms that begin alike are made at the same time');
}

interface NewRoom {
  readonly createEvent: RoomEvent;
  readonly version: RoomVersion;
  readonly preset: keyof typeof PRESETS;
  readonly alias: string | undefined;
  readonly invitees: readonly string[];
}

/** The room's first events, all or, where the rules refuse one, those before it. */
async function appendInitial(
  { rooms, profile: profileOf }: CreateRoomParts,
  creator: string,
  request: CreateRoomRequest,
  { createEvent, version, preset, alias, invitees }: NewRoom,
): Promise<void> {
  const appended = await rooms.exclusive(createEvent.roomId, async (room) => {
    const profile = await profileOf(creator);
    const drafts = [...presetState(request, preset, alias)];
    // The create event, the creator's join and the power levels come before.
    rooms.expect(room.roomId, 3 + drafts.length);
    const all = [await appendBuilt(rooms, room, createEvent)];
    const send = async (draft: Omit<Draft, 'sender'>) => {
      all.push(await appendDraft(rooms, room, { ...draft, sender: creator }));
    };
    await send({ type: 'm.room.member', stateKey: creator, content: joinContent(profile) });
    await sendInitial(send, {
      type: 'm.room.power_levels',
      stateKey: '',
      content: initialPowerLevels(request, version, creator, preset, invitees),
    });
    for (const draft of drafts) await sendInitial(send, draft);
    return all;
  });
  await Promise.all(appended.map(({ committed }: Appended) => committed));
}

/** Nobody is to find, or to be in, a room that could not be made as it was asked for. */
async function giveUp(
  { aliases, membership }: CreateRoomParts,
  roomId: string,
  creator: string,
  alias: string | undefined,
): Promise<void> {
  if (alias) await aliases.remove(alias);
  await membership.leave(roomId, creator).catch(() => {});
}

function chosenVersion(parts: CreateRoomParts, request: CreateRoomRequest): RoomVersion {
  const id = request.room_version ?? parts.defaultVersion;
  const version = roomVersion(id);
  if (!version)
    throw new MatrixError(400, 'M_UNSUPPORTED_ROOM_VERSION', `Room version ${id} is not supported`);
  return version;
}

function creationContent(
  request: CreateRoomRequest,
  version: RoomVersion,
  creator: string,
  preset: keyof typeof PRESETS,
  invitees: readonly string[],
): JsonObject {
  const content: JsonObject = { ...request.creation_content, room_version: version.id };
  delete content.creator;
  if (!version.implicitCreator) content.creator = creator;
  if (!version.privilegedCreators) return content;
  const additional = content.additional_creators;
  if (additional !== undefined && !isUserIdList(additional))
    throw invalidParam('additional_creators is not a list of user ids');
  if (preset === 'trusted_private_chat' && invitees.length > 0)
    content.additional_creators = [
      ...new Set([...((additional as string[] | undefined) ?? []), ...invitees]),
    ];
  return content;
}

function isUserIdList(value: JsonValue): value is string[] {
  return Array.isArray(value) && value.every((id) => typeof id === 'string' && parseUserId(id) !== undefined);
}

function joinContent({ displayname, avatar_url }: Profile): JsonObject {
  return {
    membership: 'join',
    ...(displayname ? { displayname } : {}),
    ...(avatar_url ? { avatar_url } : {}),
  };
}

function initialPowerLevels(
  request: CreateRoomRequest,
  version: RoomVersion,
  creator: string,
  preset: keyof typeof PRESETS,
  invitees: readonly string[],
): JsonObject {
  const users: JsonObject = {};
  if (!version.privilegedCreators) {
    users[creator] = 100;
    if (preset === 'trusted_private_chat') for (const invitee of invitees) users[invitee] = 100;
  }
  return {
    users,
    users_default: 0,
    events: {
      'm.room.name': 50,
      'm.room.power_levels': 100,
      'm.room.history_visibility': 100,
      'm.room.canonical_alias': 50,
      'm.room.avatar': 50,
      // Only creators may end a room for all (spec: `/createRoom`, step 3).
      'm.room.tombstone': version.privilegedCreators ? 150 : 100,
      'm.room.server_acl': 100,
      'm.room.encryption': 100,
    },
    events_default: 0,
    state_default: 50,
    ban: 50,
    kick: 50,
    redact: 50,
    // Anybody may come in by themselves; who others are brought in by is for the moderators to say.
    invite: preset === 'public_chat' ? 50 : 0,
    historical: 100,
    ...request.power_level_content_override,
  };
}

/** Steps 4 to 7 of the spec's order: alias, preset, initial state, name and topic; later ones win over earlier. */
function presetState(request: CreateRoomRequest, preset: keyof typeof PRESETS, alias: string | undefined) {
  const { join_rule, guest_access } = PRESETS[preset];
  const drafts = new Map<string, Omit<Draft, 'sender'>>();
  const set = (type: string, content: JsonObject, stateKey = '') => {
    // What is set anew moves to where it is set.
    drafts.delete(`${type}\0${stateKey}`);
    drafts.set(`${type}\0${stateKey}`, { type, stateKey, content });
  };
  if (alias) set('m.room.canonical_alias', { alias });
  set('m.room.join_rules', { join_rule });
  set('m.room.history_visibility', { history_visibility: 'shared' });
  // Forbidden is what holds without such an event.
  if (guest_access !== 'forbidden') set('m.room.guest_access', { guest_access });
  for (const { type, state_key, content } of request.initial_state ?? []) set(type, content, state_key);
  if (request.name !== undefined) set('m.room.name', { name: request.name });
  if (request.topic !== undefined)
    // The rich form beside the plain one (spec: `m.room.topic`).
    set('m.room.topic', { topic: request.topic, 'm.topic': { 'm.text': [{ body: request.topic }] } });
  return drafts.values();
}

/** Initial state that the rules refuse makes the whole request wrong: M_INVALID_ROOM_STATE. */
async function sendInitial(
  send: (draft: Omit<Draft, 'sender'>) => Promise<void>,
  draft: Omit<Draft, 'sender'>,
): Promise<void> {
  try {
    await send(draft);
  } catch (error) {
    if (error instanceof MatrixError && error.errcode === 'M_FORBIDDEN')
      throw new MatrixError(400, 'M_INVALID_ROOM_STATE', `${draft.type}: ${error.message}`);
    throw error;
  }
}
