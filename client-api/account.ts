import { forbidden } from '@trellis/protocol/errors.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { Deactivation } from '@trellis/users/deactivation.ts';
import type { Devices } from '@trellis/users/devices.ts';
import { userLocked } from '@trellis/users/sessions.ts';
import type { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { Stage } from '@trellis/users/uia-stages.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';

export interface AccountDeps {
  readonly accounts: Accounts;
  readonly devices: Devices;
  readonly uia: Uia;
  readonly deactivation: Deactivation;
  readonly threepidSessions: ThreepidSessions;
}

const auth = Type.Optional(Type.Record(Type.String(), Type.Any()));
const passwordBody = Type.Object({
  new_password: Type.String(),
  logout_devices: Type.Optional(Type.Boolean()),
  auth,
});
const deactivateBody = Type.Optional(
  Type.Object({ erase: Type.Optional(Type.Boolean()), id_server: Type.Optional(Type.String()), auth }),
);

/** Changing the password, and the end of an account (spec: "Account management"). */
export function accountRoutes(
  app: FastifyInstance,
  { accounts, devices, uia, deactivation, threepidSessions }: AccountDeps,
): void {
  app.post<{ Body: { new_password: string; logout_devices?: boolean } }>(
    '/_matrix/client/v3/account/password',
    { schema: { body: passwordBody }, config: { auth: 'optional', rateLimit: 'login' } },
    async (request) => {
      const { new_password, logout_devices = true } = request.body;
      accounts.checkNewPassword(new_password);
      const userId = request.requester
        ? await confirmedUser(request, 'POST /account/password')
        : await userByAnyMeans(request);
      await accounts.setPassword(userId, new_password);
      if (logout_devices) await devices.deleteAll(userId, request.requester?.deviceId);
      return {};
    },
  );

  app.post<{ Body: { erase?: boolean } | undefined }>(
    '/_matrix/client/v3/account/deactivate',
    { schema: { body: deactivateBody }, config: { auth: 'optional', rateLimit: 'login' } },
    async (request) => {
      const { requester } = request;
      const userId =
        requester?.appserviceId !== undefined
          ? requester.userId
          : await confirmedUser(request, 'POST /account/deactivate');
      await deactivation.deactivate(userId, request.body?.erase ?? false);
      // No identifier of the user was ever bound at an identity server from here.
      return { id_server_unbind_result: 'success' };
    },
  );

  /** Who forgot their password: whoever reads what is sent to an address of the account may set another. */
  async function userByAnyMeans(request: FastifyRequest): Promise<string> {
    const flows: Stage[][] = [['m.login.password']];
    if (threepidSessions.supports('email')) flows.push(['m.login.email.identity']);
    if (threepidSessions.supports('msisdn')) flows.push(['m.login.msisdn']);
    const endpoint = 'POST /account/password';
    const outcome = await uia.complete(
      { endpoint, body: request.body, userId: undefined, purpose: 'password' },
      flows,
    );
    const [threepid] = outcome.threepids;
    const userId =
      threepid === undefined
        ? outcome.passwordUserId
        : (await accounts.findByThreepid(threepid.medium, threepid.address))?.userId;
    if (userId === undefined) throw forbidden('Nobody is known by that');
    if ((await accounts.get(userId))?.locked) throw userLocked();
    if (threepid) await threepidSessions.end(threepid.sid);
    return userId;
  }

  /** Who gave their password: the requester, or without an access token whoever it is. */
  async function confirmedUser(request: FastifyRequest, endpoint: string): Promise<string> {
    const { passwordUserId } = await uia.confirmPassword({
      endpoint,
      body: request.body,
      userId: request.requester?.userId,
    });
    if (passwordUserId === undefined) throw forbidden('Nobody gave a password');
    if ((await accounts.get(passwordUserId))?.locked) throw userLocked();
    return passwordUserId;
  }
}
