import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { isRoomId, isServerName } from '@trellis/protocol/identifiers.ts';
import type { RemoteAliases } from '@trellis/rooms/aliases.ts';
import type { RemoteHierarchy, RemoteSpaces } from '@trellis/rooms/hierarchy.ts';
import { type ChildState, inOrder, type SpaceRoom } from '@trellis/rooms/spaces.ts';
import type { RemoteProfiles } from '@trellis/users/profiles.ts';
import { isObject } from './answers.ts';
import type { FederationClient } from './client.ts';
import { FederationError } from './federation-error.ts';
import {
  hierarchy,
  type PublicRoomsQuery,
  publicRooms,
  queryDirectory,
  queryProfile,
} from './query-calls.ts';

const MAX_CHILDREN = 1_000;
const MAX_SERVERS = 100;

/** Aliases of other servers. */
export function remoteAliases(client: FederationClient): RemoteAliases {
  return async (alias, server) => {
    try {
      const { roomId, servers } = await queryDirectory(client, server, alias);
      if (!isRoomId(roomId)) return undefined;
      // The alias's server knows the way, whatever it says of others.
      const known = servers.filter((name) => isServerName(name)).slice(0, MAX_SERVERS);
      return { roomId, servers: known.length > 0 ? known : [server] };
    } catch (error) {
      if (error instanceof FederationError && error.status === 404) return undefined;
      throw asMatrixError(error);
    }
  };
}

/** Published directories of other servers. */
export function remotePublicRooms(client: FederationClient) {
  return {
    async list(server: string, query: PublicRoomsQuery): Promise<JsonObject> {
      try {
        return await publicRooms(client, server, query);
      } catch (error) {
        throw asMatrixError(error);
      }
    },
  };
}

export function remoteProfiles(client: FederationClient): RemoteProfiles {
  return {
    async query(userId, field) {
      try {
        return await queryProfile(client, userId.slice(userId.indexOf(':') + 1), userId, field);
      } catch (error) {
        throw asMatrixError(error);
      }
    },
  };
}

/** Spaces and rooms that this server is not in. */
export function remoteSpaces(client: FederationClient): RemoteSpaces {
  return {
    async hierarchy(server, roomId, suggestedOnly) {
      try {
        return readHierarchy(roomId, await hierarchy(client, server, roomId, suggestedOnly));
      } catch (error) {
        if (error instanceof FederationError) return undefined;
        throw error;
      }
    },
  };
}

function readHierarchy(roomId: string, answer: JsonObject): RemoteHierarchy | undefined {
  const room = readRoom(answer.room);
  if (room?.room_id !== roomId) return undefined;
  return {
    room,
    children: listOf(answer.children).flatMap((child) => readRoom(child) ?? []),
    inaccessible: listOf(answer.inaccessible_children).filter((id) => typeof id === 'string'),
  };
}

/** Members of the right types; nothing else is taken over from another server. */
function readRoom(value: JsonValue | undefined): SpaceRoom | undefined {
  if (!isObject(value) || typeof value.room_id !== 'string' || !isRoomId(value.room_id)) return undefined;
  const room: SpaceRoom = {
    room_id: value.room_id,
    num_joined_members: typeof value.num_joined_members === 'number' ? value.num_joined_members : 0,
    world_readable: value.world_readable === true,
    guest_can_join: value.guest_can_join === true,
    children_state: inOrder(listOf(value.children_state).flatMap((child) => readChild(child) ?? [])),
  };
  for (const name of TEXTS) {
    const text = value[name];
    if (typeof text === 'string') room[name] = text;
  }
  const { allowed_room_ids: allowed } = value;
  if (Array.isArray(allowed)) room.allowed_room_ids = listOf(allowed).filter((id) => typeof id === 'string');
  // Left out, it counts as public (spec: `PublishedRoomsChunk`).
  room.join_rule ??= 'public';
  return room;
}

const TEXTS = [
  'name',
  'topic',
  'canonical_alias',
  'avatar_url',
  'join_rule',
  'room_type',
  'encryption',
  'room_version',
] as const;

function readChild(value: JsonValue): ChildState | undefined {
  if (!isObject(value) || value.type !== 'm.space.child') return undefined;
  const { state_key, content, sender, origin_server_ts } = value;
  if (typeof state_key !== 'string' || !isObject(content) || typeof sender !== 'string') return undefined;
  if (typeof origin_server_ts !== 'number') return undefined;
  return { type: 'm.space.child', state_key, content, sender, origin_server_ts };
}

function listOf(value: JsonValue | undefined): JsonValue[] {
  return Array.isArray(value) ? value.slice(0, MAX_CHILDREN) : [];
}

function asMatrixError(error: unknown): unknown {
  return error instanceof FederationError ? error.toMatrixError() : error;
}
