import { forbidden, invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import type { DehydratedDevices } from '@trellis/users/e2ee/dehydrated-devices.ts';
import type { ToDevice } from '@trellis/users/to-device.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { deviceKeysSchema, keyObjects } from './keys.ts';

export interface DehydratedDeviceDeps {
  readonly dehydrated: DehydratedDevices;
  readonly toDevice: ToDevice;
  /** Where the stream of send-to-device messages stands. */
  readonly toDevicePosition: () => number;
}

const PATH = '/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device';
const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 500;

const putBody = Type.Object({
  device_id: Type.String(),
  device_data: Type.Object({ algorithm: Type.String() }),
  initial_device_display_name: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  device_keys: deviceKeysSchema,
  one_time_keys: Type.Optional(keyObjects),
  fallback_keys: Type.Optional(keyObjects),
});
interface PutBody {
  device_id: string;
  device_data: JsonObject;
  initial_device_display_name?: string | null;
  device_keys: JsonObject;
  one_time_keys?: Record<string, JsonValue>;
  fallback_keys?: Record<string, JsonValue>;
}

const eventsBody = Type.Optional(Type.Object({ next_batch: Type.Optional(Type.String()) }));

interface EventsParams {
  deviceId: string;
}

/** Dehydrated devices (MSC3814). */
export function dehydratedDeviceRoutes(app: FastifyInstance, deps: DehydratedDeviceDeps): void {
  const { dehydrated, toDevice, toDevicePosition } = deps;

  app.get(PATH, async (request) => {
    const device = await dehydrated.get(requesterOf(request).userId);
    if (!device) throw notFound('You have no dehydrated device');
    return { device_id: device.deviceId, device_data: device.data };
  });

  app.put<{ Body: PutBody }>(PATH, { schema: { body: putBody } }, async (request) => {
    const { body } = request;
    await dehydrated.set(
      requesterOf(request).userId,
      { deviceId: body.device_id, data: body.device_data },
      {
        deviceKeys: body.device_keys,
        oneTimeKeys: body.one_time_keys ?? {},
        fallbackKeys: body.fallback_keys ?? {},
      },
      body.initial_device_display_name ?? undefined,
    );
    return { device_id: body.device_id };
  });

  app.delete(PATH, async (request) => {
    const deviceId = await dehydrated.delete(requesterOf(request).userId);
    if (deviceId === undefined) throw notFound('You have no dehydrated device');
    return { device_id: deviceId };
  });

  app.get<{ Params: EventsParams; Querystring: { from?: string; limit?: string } }>(
    `${PATH}/:deviceId/events`,
    async (request) => {
      const { from, limit } = request.query;
      const { userId } = requesterOf(request);
      const batch = await eventsOf(userId, request.params.deviceId, from, limitOf(limit));
      return { events: batch.events, ...(batch.more && { next_batch: batch.next }) };
    },
  );

  // As it was in earlier drafts, where an empty batch is the last.
  app.post<{ Params: EventsParams; Body: { next_batch?: string } | undefined }>(
    `${PATH}/:deviceId/events`,
    { schema: { body: eventsBody } },
    async (request) => {
      const { userId } = requesterOf(request);
      const from = request.body?.next_batch;
      const { events, next } = await eventsOf(userId, request.params.deviceId, from, DEFAULT_LIMIT);
      return { events, next_batch: next };
    },
  );

  /** The messages stay until the device goes: whoever reads them may be cut off. */
  async function eventsOf(userId: string, deviceId: string, from: string | undefined, limit: number) {
    if ((await dehydrated.get(userId))?.deviceId !== deviceId)
      throw forbidden('That is not your dehydrated device');
    const since = from === undefined ? 0 : Number(/^d(\d+)$/.exec(from)?.[1] ?? Number.NaN);
    if (!Number.isSafeInteger(since)) throw invalidParam('That is no token of an earlier answer');
    const { events, upTo, more } = await toDevice.pending(userId, deviceId, since, toDevicePosition(), limit);
    return { events, more, next: `d${Math.max(since, upTo)}` };
  }
}

function limitOf(text: string | undefined): number {
  if (text === undefined) return DEFAULT_LIMIT;
  const limit = Number(text);
  if (!Number.isSafeInteger(limit) || limit <= 0) throw invalidParam('limit is not a positive number');
  return Math.min(limit, MAX_LIMIT);
}
