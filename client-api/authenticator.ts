import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { AppserviceIdentity, AppserviceTokens } from '@trellis/users/appservice-users.ts';
import type { Devices } from '@trellis/users/devices.ts';
import { type Sessions, userLocked } from '@trellis/users/sessions.ts';
import type { Authenticate, Requester } from './authentication.ts';

export interface AuthenticatorDeps {
  readonly accounts: Accounts;
  readonly sessions: Sessions;
  readonly devices: Devices;
  readonly appservices: AppserviceTokens;
}

/** Finds out who a request comes from: the owner of an access token, or whom an application service acts as. */
export function createAuthenticator(deps: AuthenticatorDeps): Authenticate {
  const { accounts, sessions, devices, appservices } = deps;
  return async (token, request) => {
    const appservice = appservices.byToken(token);
    if (appservice) return masquerade(deps, appservice, request);

    let session = sessions.byAccessToken(token);
    if (session instanceof Promise) session = await session;
    if (!session) throw unknownToken(false);
    if (session.expiresTs !== null && session.expiresTs <= Date.now()) throw unknownToken(true);
    if (session.replaces !== null && !(await sessions.confirm(session))) throw unknownToken(false);

    let account = accounts.get(session.userId);
    if (account instanceof Promise) account = await account;
    if (!account || account.deactivated) throw unknownToken(false);
    if (account.locked && !request.allowLocked) throw userLocked();
    devices.seen(session.userId, session.deviceId, request.ip, request.userAgent);
    return {
      userId: session.userId,
      deviceId: session.deviceId,
      tokenId: session.id,
      isGuest: account.isGuest,
      isAdmin: account.isAdmin,
      isSuspended: account.suspended,
      appserviceId: undefined,
    };
  };
}

/** Application service API, "Identity assertion". */
async function masquerade(
  { accounts, devices }: AuthenticatorDeps,
  appservice: AppserviceIdentity,
  { userId = appservice.senderUserId, deviceId }: { userId?: string; deviceId?: string },
): Promise<Requester> {
  if (userId !== appservice.senderUserId && !appservice.isInterested(userId))
    throw forbidden('The application service cannot act as this user');
  const account = await accounts.get(userId);
  if (!account) throw forbidden('The application service has not registered this user');
  if (account.deactivated)
    throw new MatrixError(403, 'M_USER_DEACTIVATED', 'This account has been deactivated');
  if (deviceId !== undefined && !(await devices.get(userId, deviceId)))
    throw new MatrixError(400, 'M_UNKNOWN_DEVICE', 'The user has no such device');
  return {
    userId,
    deviceId,
    tokenId: `appservice:${appservice.id}`,
    isGuest: false,
    isAdmin: account.isAdmin,
    isSuspended: account.suspended,
    appserviceId: appservice.id,
    isUnlimited: !appservice.rateLimited || userId === appservice.senderUserId,
  };
}

function unknownToken(softLogout: boolean): MatrixError {
  return new MatrixError(401, 'M_UNKNOWN_TOKEN', 'Unrecognised access token', { soft_logout: softLogout });
}
