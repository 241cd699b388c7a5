import { notFound } from '@trellis/protocol/errors.ts';
import type { Device, Devices } from '@trellis/users/devices.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface DevicesDeps {
  readonly devices: Devices;
  readonly uia: Uia;
}

interface DeviceParams {
  deviceId: string;
}

const nameBody = Type.Optional(Type.Object({ display_name: Type.Optional(Type.String()) }));
const listBody = Type.Object({ devices: Type.Array(Type.String(), { maxItems: 1000 }) });

/** Devices of the user (spec: "Device Management"). */
export function devicesRoutes(app: FastifyInstance, { devices, uia }: DevicesDeps): void {
  app.get('/_matrix/client/v3/devices', { config: { guests: true } }, async (request) => ({
    devices: (await devices.list(requesterOf(request).userId)).map(deviceJson),
  }));

  app.get<{ Params: DeviceParams }>(
    '/_matrix/client/v3/devices/:deviceId',
    { config: { guests: true } },
    async (request) => {
      const device = await devices.get(requesterOf(request).userId, request.params.deviceId);
      if (!device) throw noSuchDevice();
      return deviceJson(device);
    },
  );

  app.put<{ Params: DeviceParams; Body: { display_name?: string } | undefined }>(
    '/_matrix/client/v3/devices/:deviceId',
    { schema: { body: nameBody }, config: { guests: true } },
    async (request, reply) => {
      const { userId, appserviceId } = requesterOf(request);
      const { deviceId } = request.params;
      const { display_name: name } = request.body ?? {};
      if (
        name === undefined
          ? await devices.get(userId, deviceId)
          : await devices.rename(userId, deviceId, name)
      )
        return {};
      // Since v1.17 application services make devices for their users (MSC4190).
      if (appserviceId === undefined) throw noSuchDevice();
      if (await devices.create(userId, deviceId, name)) reply.code(201);
      return {};
    },
  );

  app.delete<{ Params: DeviceParams }>('/_matrix/client/v3/devices/:deviceId', async (request) => {
    const { deviceId } = request.params;
    await confirm(request, `DELETE /devices/${deviceId}`);
    await devices.delete(requesterOf(request).userId, [deviceId]);
    return {};
  });

  app.post<{ Body: { devices: string[] } }>(
    '/_matrix/client/v3/delete_devices',
    { schema: { body: listBody } },
    async (request) => {
      await confirm(request, 'POST /delete_devices');
      await devices.delete(requesterOf(request).userId, request.body.devices);
      return {};
    },
  );

  /** Application services need not confirm it since v1.17. */
  async function confirm(request: FastifyRequest, endpoint: string): Promise<void> {
    const { userId, appserviceId } = requesterOf(request);
    if (appserviceId === undefined) await uia.confirmPassword({ endpoint, body: request.body, userId });
  }
}

function deviceJson({ deviceId, displayName, lastSeenIp, lastSeenTs }: Device) {
  return {
    device_id: deviceId,
    ...(displayName !== null && { display_name: displayName }),
    ...(lastSeenIp !== null && { last_seen_ip: lastSeenIp }),
    ...(lastSeenTs !== null && { last_seen_ts: lastSeenTs }),
  };
}

function noSuchDevice() {
  return notFound('You have no such device');
}
