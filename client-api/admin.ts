import { forbidden, invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { Account, Accounts } from '@trellis/users/accounts.ts';
import type { Devices } from '@trellis/users/devices.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface AdminDeps {
  readonly accounts: Accounts;
  readonly devices: Devices;
}

interface UserParams {
  userId: string;
}

/** What administrators may do by the client API (spec: "Server Administration"). */
export function adminRoutes(app: FastifyInstance, { accounts, devices }: AdminDeps): void {
  app.get<{ Params: UserParams }>('/_matrix/client/v3/admin/whois/:userId', async (request) => {
    const { userId } = request.params;
    const requester = requesterOf(request);
    if (requester.userId !== userId && !requester.isAdmin) throw forbidden('You are not an administrator');
    if (!accounts.isLocal(userId)) throw invalidParam('That user is not of this server');
    if (!(await accounts.get(userId))) throw notFound('No such user');
    const sessions = (await devices.list(userId)).map(({ deviceId, lastSeenTs, ...seen }) => {
      const connection = {
        ...(seen.lastSeenIp !== null && { ip: seen.lastSeenIp }),
        last_seen: lastSeenTs,
        ...(seen.lastSeenUserAgent !== null && { user_agent: seen.lastSeenUserAgent }),
      };
      return [deviceId, { sessions: [{ connections: lastSeenTs === null ? [] : [connection] }] }] as const;
    });
    return { user_id: userId, devices: Object.fromEntries(sessions) };
  });

  for (const [action, member, set] of [
    ['lock', 'locked', accounts.setLocked],
    ['suspend', 'suspended', accounts.setSuspended],
  ] as const) {
    // The second is the name that MSC4323 had before v1.18.
    for (const base of ['/_matrix/client/v1/admin', '/_matrix/client/unstable/uk.timedout.msc4323/admin']) {
      const path = `${base}/${action}/:userId`;

      app.get<{ Params: UserParams }>(path, async (request) => {
        const account = await subjectOf(request);
        return { [member]: account[member] };
      });

      app.put<{ Params: UserParams; Body: { [name: string]: boolean } }>(
        path,
        { schema: { body: Type.Object({ [member]: Type.Boolean() }) } },
        async (request) => {
          const { userId } = await subjectOf(request);
          if (userId === requesterOf(request).userId)
            throw forbidden(`You cannot ${action} your own account`);
          await set.call(accounts, userId, request.body[member]!);
          return { [member]: request.body[member] };
        },
      );
    }
  }

  /** The account that an administrator asks for. Others learn nothing of it, not even whether it exists. */
  async function subjectOf(request: FastifyRequest): Promise<Account> {
    const requester = requesterOf(request);
    if (!requester.isAdmin) throw forbidden('You are not an administrator');
    const { userId } = request.params as UserParams;
    if (!accounts.isLocal(userId)) throw invalidParam('That user is not of this server');
    const account = await accounts.get(userId);
    if (!account || account.deactivated) throw notFound('No such user');
    if (account.isAdmin && userId !== requester.userId) throw forbidden('That user is an administrator too');
    return account;
  }
}
