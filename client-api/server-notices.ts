import '@trellis/cluster/owned-routes.ts';
import { forbidden, invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { ServerNotices } from '@trellis/rooms/server-notices.ts';
import type { Transactions } from '@trellis/rooms/transactions.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface ServerNoticesDeps {
  readonly accounts: Accounts;
  readonly notices: ServerNotices;
  readonly transactions: Transactions;
}

interface NoticeBody {
  user_id: string;
  type?: string;
  state_key?: string;
  content: JsonObject;
}

const body = Type.Object({
  user_id: Type.String({ maxLength: 255 }),
  type: Type.Optional(Type.String({ minLength: 1, maxLength: 255 })),
  state_key: Type.Optional(Type.String({ maxLength: 255 })),
  content: Type.Object({}),
});

/** Notices to users (spec: "Server Notices"). How administrators send them the spec leaves open; this is Synapse's way. */
export function serverNoticesRoutes(app: FastifyInstance, deps: ServerNoticesDeps): void {
  const { accounts, notices, transactions } = deps;
  const path = '/_synapse/admin/v1/send_server_notice';
  const options = { schema: { body }, preValidation: requireAdmin };

  app.post<{ Body: NoticeBody }>(path, options, async (request) => ({ event_id: await send(request.body) }));

  // The same transaction through another process is to be known there.
  const config = { duty: 'user', key: (request: FastifyRequest) => requesterOf(request).userId } as const;
  const once = { ...options, config };
  app.put<{ Params: { txnId: string }; Body: NoticeBody }>(`${path}/:txnId`, once, async (request) => {
    const key = `server notice ${request.params.txnId}`;
    return { event_id: await transactions.once(requesterOf(request), key, () => send(request.body)) };
  });

  async function send({ user_id: userId, type, state_key: stateKey, content }: NoticeBody): Promise<string> {
    if (!accounts.isLocal(userId)) throw invalidParam('Notices are for users of this server');
    const account = await accounts.get(userId);
    if (!account || account.deactivated) throw notFound('No such user');
    return notices.send(userId, { type: type ?? 'm.room.message', stateKey, content });
  }
}

/** Before the body is looked at: others learn nothing of what it should be. */
async function requireAdmin(request: FastifyRequest): Promise<void> {
  if (!requesterOf(request).isAdmin) throw forbidden('You are not an administrator');
}
