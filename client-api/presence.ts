import { forbidden, invalidParam } from '@trellis/protocol/errors.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import { type Presence, presenceContent } from '@trellis/users/presence.ts';
import { isPresence, OFFLINE } from '@trellis/users/presence-user.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf, requireSelf } from './authentication.ts';

export interface PresenceDeps {
  readonly presence: Presence;
  readonly memberships: Memberships;
}

const MAX_STATUS_LENGTH = 1024;

const body = Type.Object({
  presence: Type.String(),
  status_msg: Type.Optional(Type.Union([Type.String({ maxLength: MAX_STATUS_LENGTH }), Type.Null()])),
});

/** Presence (spec: "Presence"). */
export function presenceRoutes(app: FastifyInstance, { presence, memberships }: PresenceDeps): void {
  const url = '/_matrix/client/v3/presence/:userId/status';

  app.get<{ Params: { userId: string } }>(url, async (request) => {
    const { userId } = request.params;
    const requester = requesterOf(request);
    if (!(await memberships.shareRoom(requester.userId, userId)))
      throw forbidden('You are not allowed to see their presence');
    return presenceContent((await presence.get(userId)) ?? OFFLINE);
  });

  app.put<{ Params: { userId: string }; Body: { presence: string; status_msg?: string | null } }>(
    url,
    { schema: { body } },
    async (request) => {
      const { userId } = request.params;
      const { deviceId = '' } = requireSelf(request, userId);
      const { presence: state, status_msg: statusMsg = null } = request.body;
      if (!isPresence(state)) throw invalidParam('presence is not one of online, unavailable, offline');
      // PostgreSQL's text holds no U+0000.
      await presence.set(userId, deviceId, state, statusMsg?.replaceAll('\0', '').toWellFormed() || null);
      return {};
    },
  );
}
