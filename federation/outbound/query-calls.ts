import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { AnswerReader } from './answers.ts';
import { type FederationClient, path } from './client.ts';

const MAX_SERVERS = 10_000;

/** The room behind an alias of another server. */
export async function queryDirectory(
  client: FederationClient,
  destination: string,
  roomAlias: string,
): Promise<{ roomId: string; servers: string[] }> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: '/_matrix/federation/v1/query/directory',
    query: { room_alias: roomAlias },
    timeoutMs: 20_000,
    maxBytes: 2 * 1024 * 1024,
    ignoreBackoff: true,
  });
  const read = new AnswerReader(destination, answer);
  return { roomId: read.string('room_id'), servers: read.strings('servers', MAX_SERVERS) };
}

/** A profile, or one field of it, unchecked. */
export function queryProfile(
  client: FederationClient,
  destination: string,
  userId: string,
  field?: string,
): Promise<JsonObject> {
  return client.request({
    method: 'GET',
    destination,
    path: '/_matrix/federation/v1/query/profile',
    query: { user_id: userId, field },
    timeoutMs: 15_000,
    maxBytes: 256 * 1024,
  });
}

export interface PublicRoomsQuery {
  limit?: number;
  since?: string;
  filter?: JsonObject;
  includeAllNetworks?: boolean;
  thirdPartyInstanceId?: string;
}

/** One page of another server's published rooms, as it came. */
export function publicRooms(
  client: FederationClient,
  destination: string,
  query: PublicRoomsQuery,
): Promise<JsonObject> {
  const common = {
    destination,
    path: '/_matrix/federation/v1/publicRooms',
    timeoutMs: 20_000,
    ignoreBackoff: true,
  };
  if (!query.filter) {
    return client.request({
      ...common,
      method: 'GET',
      query: {
        limit: query.limit,
        since: query.since,
        include_all_networks: query.includeAllNetworks,
        third_party_instance_id: query.thirdPartyInstanceId,
      },
    });
  }
  return client.request({
    ...common,
    method: 'POST',
    body: withoutUndefined({
      limit: query.limit,
      since: query.since,
      filter: query.filter,
      include_all_networks: query.includeAllNetworks,
      third_party_instance_id: query.thirdPartyInstanceId,
    }),
  });
}

/** All devices of a user, with the cross-signing keys, as they came: `{ user_id, stream_id, devices, … }`. */
export function userDevices(
  client: FederationClient,
  destination: string,
  userId: string,
): Promise<JsonObject> {
  return client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/user/devices/${userId}`,
    timeoutMs: 20_000,
  });
}

/** `deviceKeys`: user id to device ids, an empty list for all. The answer is as it came. */
export function queryKeys(
  client: FederationClient,
  destination: string,
  deviceKeys: Record<string, string[]>,
  timeoutMs = 20_000,
): Promise<JsonObject> {
  return client.request({
    method: 'POST',
    destination,
    path: '/_matrix/federation/v1/user/keys/query',
    body: { device_keys: deviceKeys },
    timeoutMs,
  });
}

/** `oneTimeKeys`: user id to device id to algorithm. The answer is as it came. */
export function claimKeys(
  client: FederationClient,
  destination: string,
  oneTimeKeys: Record<string, Record<string, string>>,
  timeoutMs = 20_000,
): Promise<JsonObject> {
  return client.request({
    method: 'POST',
    destination,
    path: '/_matrix/federation/v1/user/keys/claim',
    body: { one_time_keys: oneTimeKeys },
    timeoutMs,
  });
}

/** A space's room and its children, as they came: `{ room, children, inaccessible_children }`. */
export function hierarchy(
  client: FederationClient,
  destination: string,
  roomId: string,
  suggestedOnly: boolean,
): Promise<JsonObject> {
  return client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/hierarchy/${roomId}`,
    query: { suggested_only: suggestedOnly },
    timeoutMs: 20_000,
  });
}

/** The server's published keys; nothing in them is verified yet. */
export function serverKeys(
  client: FederationClient,
  destination: string,
  ignoreBackoff: boolean,
): Promise<JsonObject> {
  return client.request({
    method: 'GET',
    destination,
    path: '/_matrix/key/v2/server',
    timeoutMs: 10_000,
    maxBytes: 256 * 1024,
    unsigned: true,
    ignoreBackoff,
  });
}

/** Keys of many servers from a notary; nothing in them is verified yet. */
export async function queryNotary(
  client: FederationClient,
  notary: string,
  wanted: Record<string, Record<string, { minimum_valid_until_ts: number }>>,
): Promise<JsonObject[]> {
  const answer = await client.request({
    method: 'POST',
    destination: notary,
    path: '/_matrix/key/v2/query',
    body: { server_keys: wanted },
    // A notary asks others itself, but somebody may be waiting here too.
    timeoutMs: 10_000,
    unsigned: true,
  });
  return new AnswerReader(notary, answer).pdus('server_keys', 10_000);
}

function withoutUndefined(object: Record<string, JsonValue | undefined>): JsonObject {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as JsonObject;
}
