import type { Devices } from '@trellis/users/devices.ts';
import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';

/** `/logout` and `/logout/all`: the device goes with its access token (spec: "Relationship between access tokens and devices"). */
export function logoutRoutes(app: FastifyInstance, { devices }: { readonly devices: Devices }): void {
  const config = { guests: true, locked: true };

  app.post('/_matrix/client/v3/logout', { config }, async (request) => {
    const { userId, deviceId } = requesterOf(request);
    if (deviceId !== undefined) await devices.delete(userId, [deviceId]);
    return {};
  });

  app.post('/_matrix/client/v3/logout/all', { config }, async (request) => {
    await devices.deleteAll(requesterOf(request).userId);
    return {};
  });
}
