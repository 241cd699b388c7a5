import { forbidden, notFound } from '@trellis/protocol/errors.ts';
import type { JsonValue } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { DeviceKeys } from '@trellis/users/e2ee/device-keys.ts';
import { deviceListPosition } from '@trellis/users/e2ee/device-list-edus.ts';
import { deviceJson } from '@trellis/users/e2ee/key-answers.ts';
import { isName } from '@trellis/users/e2ee/key-json.ts';
import { localKeys } from '@trellis/users/e2ee/local-keys.ts';
import type { FastifyInstance } from 'fastify';
import { type TSchema, Type } from 'typebox';
import { originOf } from './authentication.ts';

export interface DeviceKeysRoutesDeps {
  readonly db: Queryable;
  readonly serverName: string;
  readonly deviceKeys: DeviceKeys;
}

/** Users or devices that one request can ask for. */
const MAX_ASKED = 10_000;
/** An object whose members are all of one kind, whatever their names. */
const mapOf = (values: TSchema, limits: { maxProperties?: number } = {}) =>
  Type.Object({}, { additionalProperties: values, ...limits });
const queryBody = Type.Object({
  device_keys: mapOf(Type.Array(Type.String()), { maxProperties: MAX_ASKED }),
});
const claimBody = Type.Object({
  one_time_keys: mapOf(mapOf(Type.String())),
});

/** Devices and keys of local users, for other servers (Server-Server API, "Device Management", "End-to-End Encryption"). */
export function deviceKeysRoutes(app: FastifyInstance, deps: DeviceKeysRoutesDeps): void {
  const { db, serverName, deviceKeys } = deps;
  const isLocal = (userId: string) => isName(userId) && serverNameOf(userId) === serverName;

  app.get<{ Params: { userId: string } }>('/_matrix/federation/v1/user/devices/:userId', async (request) => {
    const { userId } = request.params;
    if (!isLocal(userId)) throw forbidden('The user is not of this server');
    // The position first: what changes in between is told once more, and not missed.
    const position = await deviceListPosition(db, userId, originOf(request));
    const user = (await localKeys(db, [userId])).get(userId);
    if (!user) throw notFound('There is no such user');
    const devices = [...user.devices].flatMap(([device_id, { displayName, keys }]) =>
      keys ? [{ device_id, keys, ...(displayName ? { device_display_name: displayName } : {}) }] : [],
    );
    return {
      user_id: userId,
      stream_id: position ?? 0,
      devices,
      ...(user.masterKey ? { master_key: user.masterKey } : {}),
      ...(user.selfSigningKey ? { self_signing_key: user.selfSigningKey } : {}),
    };
  });

  app.post<{ Body: { device_keys: Record<string, string[]> } }>(
    '/_matrix/federation/v1/user/keys/query',
    { schema: { body: queryBody } },
    async (request) => {
      const wanted = new Map(Object.entries(request.body.device_keys).filter(([userId]) => isLocal(userId)));
      const users = [...(await localKeys(db, [...wanted.keys()]))];
      const section = (name: 'masterKey' | 'selfSigningKey') =>
        Object.fromEntries(users.flatMap(([id, user]) => (user[name] ? [[id, user[name]]] : [])));
      return {
        device_keys: Object.fromEntries(users.map(([id, user]) => [id, deviceJson(user, wanted.get(id))])),
        master_keys: section('masterKey'),
        self_signing_keys: section('selfSigningKey'),
      };
    },
  );

  app.post<{ Body: { one_time_keys: Record<string, Record<string, string>> } }>(
    '/_matrix/federation/v1/user/keys/claim',
    { schema: { body: claimBody } },
    async (request) => {
      const wanted = Object.entries(request.body.one_time_keys)
        .filter(([userId]) => isLocal(userId))
        .flatMap(([userId, devices]) =>
          Object.entries(devices).map(([deviceId, algorithm]) => ({ userId, deviceId, algorithm })),
        )
        .filter(({ deviceId, algorithm }) => isName(deviceId) && isName(algorithm))
        .slice(0, MAX_ASKED);
      const claimed = new Map<string, Map<string, JsonValue>>();
      for (const { userId, deviceId, algorithm, keyId, json } of await deviceKeys.claim(wanted)) {
        const devices = claimed.get(userId) ?? new Map<string, JsonValue>();
        const key = decodeJson(json) as JsonValue;
        claimed.set(userId, devices.set(deviceId, { [`${algorithm}:${keyId}`]: key }));
      }
      return {
        one_time_keys: Object.fromEntries(
          [...claimed].map(([userId, devices]) => [userId, Object.fromEntries(devices)]),
        ),
      };
    },
  );
}
