import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';

/** `GET /account/whoami` (spec: "Current account information"). */
export function whoamiRoutes(app: FastifyInstance): void {
  app.get('/_matrix/client/v3/account/whoami', { config: { guests: true } }, async (request) => {
    const { userId, deviceId, isGuest } = requesterOf(request);
    return { user_id: userId, ...(deviceId !== undefined && { device_id: deviceId }), is_guest: isGuest };
  });
}
