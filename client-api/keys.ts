import { invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import type { DeviceKeys } from '@trellis/users/e2ee/device-keys.ts';
import { deviceJson } from '@trellis/users/e2ee/key-answers.ts';
import { isName } from '@trellis/users/e2ee/key-json.ts';
import type { Keys } from '@trellis/users/e2ee/keys.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { mapOf } from './map-schema.ts';
import { deviceListsSection, sharingChanges } from './sync/people.ts';
import type { SyncSources } from './sync/sources.ts';
import { parseSyncToken } from './sync/token.ts';

export interface KeysRoutesDeps {
  readonly keys: Keys;
  readonly deviceKeys: DeviceKeys;
  readonly sources: Pick<SyncSources, 'rooms' | 'memberships' | 'deviceListChanges'>;
}

const signatures = mapOf(mapOf(Type.String()));
export const deviceKeysSchema = Type.Object({
  user_id: Type.String(),
  device_id: Type.String(),
  algorithms: Type.Array(Type.String(), { maxItems: 100 }),
  keys: mapOf(Type.String()),
  signatures,
});
export const keyObjects = mapOf(Type.Union([Type.String(), Type.Object({ key: Type.String(), signatures })]));
const uploadBody = Type.Object({
  device_keys: Type.Optional(deviceKeysSchema),
  one_time_keys: Type.Optional(keyObjects),
  fallback_keys: Type.Optional(keyObjects),
  // The name before fallback keys were in the spec, which clients still send along.
  'org.matrix.msc2732.fallback_keys': Type.Optional(keyObjects),
});
interface UploadBody {
  device_keys?: JsonObject;
  one_time_keys?: Record<string, JsonValue>;
  fallback_keys?: Record<string, JsonValue>;
  'org.matrix.msc2732.fallback_keys'?: Record<string, JsonValue>;
}

const timeout = Type.Optional(Type.Number({ minimum: 0 }));
/** Users or devices that one request can ask for. */
const MAX_ASKED = 10_000;
const queryBody = Type.Object({
  timeout,
  device_keys: mapOf(Type.Array(Type.String()), { maxProperties: MAX_ASKED }),
});
const claimBody = Type.Object({
  timeout,
  one_time_keys: mapOf(mapOf(Type.String())),
});
const changesQuery = Type.Object({ from: Type.String(), to: Type.String() });

/** Keys of devices (spec: "Key management API"). */
export function keysRoutes(app: FastifyInstance, { keys, deviceKeys, sources }: KeysRoutesDeps): void {
  app.post<{ Body: UploadBody }>(
    '/_matrix/client/v3/keys/upload',
    { schema: { body: uploadBody }, config: { guests: true } },
    async (request) => {
      const { userId, deviceId } = requesterOf(request);
      if (deviceId === undefined) throw invalidParam('Only devices can upload keys');
      const { body } = request;
      const counts = await deviceKeys.upload(userId, deviceId, {
        deviceKeys: body.device_keys,
        oneTimeKeys: body.one_time_keys,
        fallbackKeys: body.fallback_keys ?? body['org.matrix.msc2732.fallback_keys'],
      });
      return { one_time_key_counts: counts.oneTimeKeys };
    },
  );

  app.post<{ Body: { timeout?: number; device_keys: Record<string, string[]> } }>(
    '/_matrix/client/v3/keys/query',
    { schema: { body: queryBody }, config: { guests: true } },
    async (request) => {
      const { userId } = requesterOf(request);
      const wanted = new Map(Object.entries(request.body.device_keys));
      const { users, failures } = await keys.query(userId, [...wanted.keys()], request.body.timeout);
      const found = [...users];
      const section = (name: 'masterKey' | 'selfSigningKey') =>
        Object.fromEntries(found.flatMap(([id, user]) => (user[name] ? [[id, user[name]]] : [])));
      const own = users.get(userId)?.userSigningKey;
      return {
        failures: failuresJson(failures),
        device_keys: Object.fromEntries(found.map(([id, user]) => [id, deviceJson(user, wanted.get(id))])),
        master_keys: section('masterKey'),
        self_signing_keys: section('selfSigningKey'),
        user_signing_keys: own ? { [userId]: own } : {},
      };
    },
  );

  app.post<{ Body: { timeout?: number; one_time_keys: Record<string, Record<string, string>> } }>(
    '/_matrix/client/v3/keys/claim',
    { schema: { body: claimBody }, config: { guests: true } },
    async (request) => {
      const wanted = Object.entries(request.body.one_time_keys)
        .filter(([userId]) => parseUserId(userId))
        .flatMap(([userId, devices]) =>
          Object.entries(devices).map(([deviceId, algorithm]) => ({ userId, deviceId, algorithm })),
        )
        .filter(({ deviceId, algorithm }) => isName(deviceId) && isName(algorithm));
      if (wanted.length > MAX_ASKED)
        throw invalidParam(`At the most ${MAX_ASKED} keys can be claimed at once`);
      const { claimed, failures } = await keys.claim(wanted, request.body.timeout);
      return {
        failures: failuresJson(failures),
        one_time_keys: Object.fromEntries(
          [...claimed].map(([userId, devices]) => [userId, Object.fromEntries(devices)]),
        ),
      };
    },
  );

  app.get<{ Querystring: { from: string; to: string } }>(
    '/_matrix/client/v3/keys/changes',
    { schema: { querystring: changesQuery } },
    async (request) => {
      const { userId } = requesterOf(request);
      const since = parseSyncToken(request.query.from);
      const to = parseSyncToken(request.query.to);
      const interval = { sources, userId, since };
      const changes = await sharingChanges(interval, to, (await sources.memberships.of(userId)).values());
      return (await deviceListsSection(interval, to, changes)) ?? { changed: [], left: [] };
    },
  );
}

function failuresJson(servers: ReadonlySet<string>): JsonObject {
  const failure = (server: string) => ({
    status: 503,
    errcode: 'M_UNKNOWN',
    error: `${server} did not answer`,
  });
  return Object.fromEntries([...servers].map((server) => [server, failure(server)]));
}
