import { badJson, forbidden, invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { AppserviceTokens } from '@trellis/users/appservice-users.ts';
import type { ExpiringTokens } from '@trellis/users/expiring-tokens.ts';
import type { Sessions } from '@trellis/users/sessions.ts';
import type { Uia } from '@trellis/users/uia.ts';
import { accountOf, asObject } from '@trellis/users/user-identifier.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { accessToken, requesterOf } from './authentication.ts';

export interface LoginDeps {
  readonly accounts: Accounts;
  readonly sessions: Sessions;
  readonly uia: Uia;
  readonly loginTokens: ExpiringTokens;
  readonly appservices: AppserviceTokens;
  /** What `/.well-known/matrix/client` says. */
  readonly discovery: object | undefined;
  /** Device ids must not be those of cross-signing keys (spec: `POST /login`). */
  readonly isCrossSigningKey?: (userId: string, keyId: string) => Promise<boolean>;
}

const body = Type.Object({
  type: Type.String(),
  identifier: Type.Optional(Type.Record(Type.String(), Type.Any())),
  user: Type.Optional(Type.String()),
  medium: Type.Optional(Type.String()),
  address: Type.Optional(Type.String()),
  password: Type.Optional(Type.String()),
  token: Type.Optional(Type.String()),
  device_id: Type.Optional(Type.String()),
  initial_device_display_name: Type.Optional(Type.String()),
  refresh_token: Type.Optional(Type.Boolean()),
});

interface LoginBody {
  type: string;
  identifier?: Record<string, unknown>;
  user?: string;
  medium?: string;
  address?: string;
  password?: string;
  token?: string;
  device_id?: string;
  initial_device_display_name?: string;
  refresh_token?: boolean;
}

const FLOWS = [
  { type: 'm.login.password' },
  { type: 'm.login.token', get_login_token: true },
  { type: 'm.login.application_service' },
];

/** `/login` (spec: "Login", "Appservice Login"). */
export function loginRoutes(app: FastifyInstance, deps: LoginDeps): void {
  const { sessions, uia, loginTokens, discovery } = deps;

  app.get('/_matrix/client/v3/login', { config: { auth: 'none' } }, async () => ({ flows: FLOWS }));

  app.post<{ Body: LoginBody | undefined }>(
    '/_matrix/client/v3/login',
    { schema: { body }, config: { auth: 'none', rateLimit: 'login' } },
    async (request) => {
      if (!request.body) throw badJson('The request has no body');
      const { device_id, initial_device_display_name, refresh_token } = request.body;
      const userId = await userOf(deps, request, request.body);
      if (device_id !== undefined && (await deps.isCrossSigningKey?.(userId, device_id)))
        throw forbidden('The device id is that of a cross-signing key');
      const tokens = await sessions.logIn({
        userId,
        deviceId: device_id,
        deviceDisplayName: initial_device_display_name,
        refreshable: refresh_token,
      });
      return { user_id: userId, ...tokens, ...(discovery && { well_known: discovery }) };
    },
  );

  app.post('/_matrix/client/v1/login/get_token', { config: { rateLimit: 'login' } }, async (request) => {
    const { userId } = requesterOf(request);
    if (!(await deps.accounts.get(userId))?.hasPassword)
      throw new MatrixError(400, 'M_FORBIDDEN', 'Without a password you cannot make login tokens');
    await uia.confirmPassword({ endpoint: 'POST /login/get_token', body: request.body, userId });
    return { login_token: await loginTokens.issue(userId), expires_in_ms: loginTokens.lifetimeMs };
  });
}

async function userOf(deps: LoginDeps, request: FastifyRequest, body: LoginBody): Promise<string> {
  switch (body.type) {
    case 'm.login.password':
      return userByPassword(deps, body);
    case 'm.login.token':
      return userByToken(deps, body);
    case 'm.login.application_service':
      return userOfAppservice(deps, request, body);
    default:
      throw new MatrixError(400, 'M_UNKNOWN', 'This login type is not known here');
  }
}

async function userByPassword({ accounts }: LoginDeps, body: LoginBody): Promise<string> {
  checkIdentifier(body);
  if (body.password === undefined) throw missingParam('password is missing');
  const { userId } = await accountOf(accounts, { ...body });
  if (!(await accounts.checkPassword(userId, body.password))) throw forbidden('Invalid username or password');
  return userId;
}

async function userByToken({ loginTokens }: LoginDeps, { token }: LoginBody): Promise<string> {
  if (token === undefined) throw missingParam('token is missing');
  const userId = await loginTokens.take(token);
  if (userId === undefined) throw forbidden('Invalid login token');
  return userId;
}

async function userOfAppservice(
  { accounts, appservices }: LoginDeps,
  request: FastifyRequest,
  body: LoginBody,
): Promise<string> {
  const asToken = accessToken(request);
  if (asToken === undefined) throw new MatrixError(401, 'M_MISSING_TOKEN', 'Missing access token');
  const appservice = appservices.byToken(asToken);
  if (!appservice) throw new MatrixError(401, 'M_UNKNOWN_TOKEN', 'This is no application service');
  checkIdentifier(body);
  const { userId } = await accountOf(accounts, { ...body });
  const meant = userId.startsWith('@') ? userId : accounts.userIdOf(userId);
  if (!appservice.isInterested(meant))
    throw new MatrixError(400, 'M_EXCLUSIVE', 'This user is in no namespace of the application service');
  if (!(await accounts.get(meant))) throw forbidden('The application service has not registered this user');
  return meant;
}

const IDENTIFIER_MEMBERS = new Map([
  ['m.id.user', ['user']],
  ['m.id.thirdparty', ['medium', 'address']],
  ['m.id.phone', ['country', 'phone']],
]);

/** Spec: "Identifier types", and the form before these. */
function checkIdentifier({ identifier, user, medium, address }: LoginBody): void {
  const { type, ...given } = asObject(identifier) ?? { type: undefined, user, medium, address };
  const has = (name: string) => typeof (given as Record<string, unknown>)[name] === 'string';
  const members = type === undefined ? undefined : IDENTIFIER_MEMBERS.get(String(type));
  if (type !== undefined && !members)
    throw new MatrixError(400, 'M_UNKNOWN', 'This type of identifier is not known here');
  const isComplete = members ? members.every(has) : has('user') || (has('medium') && has('address'));
  if (!isComplete)
    throw type === undefined ? missingParam('identifier is missing') : invalidParam('Incomplete identifier');
}
