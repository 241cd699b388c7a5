import { badJson, forbidden, invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { AcceptedTerms } from '@trellis/users/accepted-terms.ts';
import type { Account, Accounts } from '@trellis/users/accounts.ts';
import type { AppserviceTokens } from '@trellis/users/appservice-users.ts';
import type { RegistrationTokens } from '@trellis/users/registration-tokens.ts';
import type { Sessions } from '@trellis/users/sessions.ts';
import type { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import type { Threepids } from '@trellis/users/threepids.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { Stage } from '@trellis/users/uia-stages.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { type Authenticate, accessToken } from './authentication.ts';
import type { SignUpConditions } from './sign-up-conditions.ts';

export interface RegistrationPolicy {
  /** Whoever likes may register. */
  readonly open: boolean;
  /** Where it is not open: whoever has a token of the administrators may. */
  readonly tokens: boolean;
  readonly guests: boolean;
  /** New accounts have a confirmed address, or number. */
  readonly require_email: boolean;
  readonly require_phone: boolean;
}

export interface RegisterDeps {
  readonly accounts: Accounts;
  readonly sessions: Sessions;
  readonly uia: Uia;
  readonly registrationTokens: RegistrationTokens;
  readonly appservices: AppserviceTokens;
  readonly policy: RegistrationPolicy;
  readonly threepids: Threepids;
  readonly threepidSessions: ThreepidSessions;
  readonly authenticate: Authenticate;
  readonly conditions: SignUpConditions;
  readonly acceptedTerms: AcceptedTerms;
}

const body = Type.Object({
  type: Type.Optional(Type.String()),
  username: Type.Optional(Type.String()),
  password: Type.Optional(Type.String()),
  device_id: Type.Optional(Type.String()),
  initial_device_display_name: Type.Optional(Type.String()),
  inhibit_login: Type.Optional(Type.Boolean()),
  refresh_token: Type.Optional(Type.Boolean()),
  guest_access_token: Type.Optional(Type.String()),
  auth: Type.Optional(Type.Record(Type.String(), Type.Any())),
});

interface RegisterBody {
  type?: string;
  username?: string;
  password?: string;
  device_id?: string;
  initial_device_display_name?: string;
  inhibit_login?: boolean;
  refresh_token?: boolean;
  guest_access_token?: string;
}

/** `/register` (spec: "Account registration", "Guest Access"; application service API, "Server admin style permissions"). */
export function registerRoutes(app: FastifyInstance, deps: RegisterDeps): void {
  const { accounts, registrationTokens, policy } = deps;

  app.post<{ Body: RegisterBody | undefined; Querystring: { kind?: string } }>(
    '/_matrix/client/v3/register',
    { schema: { body }, config: { auth: 'none', rateLimit: 'registration' } },
    async (request) => {
      const { kind = 'user' } = request.query;
      if (request.body?.type === 'm.login.application_service')
        return registerForAppservice(deps, request, request.body);
      if (kind === 'guest') return registerGuest(deps, request.body ?? {});
      if (kind !== 'user') throw invalidParam('There is no such kind of account');
      if (!request.body) throw badJson('The request has no body');
      return registerUser(deps, request, request.body);
    },
  );

  app.get<{ Querystring: { username?: string } }>(
    '/_matrix/client/v3/register/available',
    { config: { auth: 'none' } },
    async ({ query }) => {
      if (!isPossible(policy)) throw forbidden('Registration is disabled');
      if (typeof query.username !== 'string') throw missingParam('username is missing');
      await accounts.checkAvailable(query.username);
      return { available: true };
    },
  );

  app.get<{ Querystring: { token?: string } }>(
    '/_matrix/client/v1/register/m.login.registration_token/validity',
    { config: { auth: 'none', rateLimit: 'registration' } },
    async ({ query }) => {
      if (!isPossible(policy)) throw forbidden('Registration is disabled');
      if (typeof query.token !== 'string') throw missingParam('token is missing');
      return { valid: await registrationTokens.isValid(query.token) };
    },
  );
}

function isPossible({ open, tokens }: RegistrationPolicy): boolean {
  return open || tokens;
}

async function registerUser(deps: RegisterDeps, request: FastifyRequest, body: RegisterBody) {
  const { accounts, uia, registrationTokens, threepids } = deps;
  const { policy } = deps;
  if (!isPossible(policy)) throw forbidden('Registration is disabled');
  const { username, password } = body;
  const guest = await upgradingGuest(deps, request, body);
  if (!guest && username !== undefined) await accounts.checkAvailable(username);
  if (password !== undefined) accounts.checkNewPassword(password);

  const uiaRequest = { endpoint: 'POST /register', body, userId: undefined, purpose: 'register' } as const;
  const outcome = await uia.complete(uiaRequest, flowsOf(deps));
  const { registrationToken, threepids: confirmed } = outcome;
  if (password === undefined) throw missingParam('password is missing');
  await threepids.requireFree(confirmed);

  const create = async () => {
    if (!guest) return accounts.create({ localpart: username, password });
    await accounts.upgradeGuest(guest.userId, password);
    return guest;
  };
  const account = registrationToken
    ? await registrationTokens.use(registrationToken, create)
    : await create();
  if (outcome.completed.includes('m.login.terms')) await deps.acceptedTerms.accept(account.userId);
  for (const threepid of confirmed) {
    // Another may have had it added since it was looked at: the account is made all the same.
    await threepids.add(account.userId, threepid).catch(unlessRefused);
    await deps.threepidSessions.end(threepid.sid);
  }
  return logInUnlessInhibited(deps, account, body);
}

/** An address that nobody asks for may be confirmed all the same, and is then the account's. */
function flowsOf({ policy, conditions, threepidSessions }: RegisterDeps): Stage[][] {
  const base: Stage[] = [];
  if (conditions.captcha) base.push('m.login.recaptcha');
  if (conditions.policies) base.push('m.login.terms');
  if (!policy.open) base.push('m.login.registration_token');
  const email: Stage[] = ['m.login.email.identity'];
  const phone: Stage[] = ['m.login.msisdn'];
  const required = [...(policy.require_email ? email : []), ...(policy.require_phone ? phone : [])];
  if (required.length > 0) return [[...required, ...base]];
  const flows: Stage[][] = [base.length > 0 ? base : ['m.login.dummy']];
  if (threepidSessions.supports('email')) flows.push([...email, ...base]);
  if (threepidSessions.supports('msisdn')) flows.push([...phone, ...base]);
  return flows;
}

/** The guest whose account is to become a full one; it keeps its user name, and its old sessions are no more. */
async function upgradingGuest(
  { accounts, authenticate }: RegisterDeps,
  request: FastifyRequest,
  { guest_access_token: token, username }: RegisterBody,
): Promise<Account | undefined> {
  if (token === undefined) return undefined;
  const { userId, isGuest } = await authenticate(token, {
    ip: request.ip,
    userAgent: request.headers['user-agent'],
  });
  if (!isGuest) throw forbidden('guest_access_token is not that of a guest');
  if (username === undefined || accounts.userIdOf(username.toLowerCase()) !== userId)
    throw new MatrixError(400, 'M_INVALID_USERNAME', 'A guest who registers keeps the user name');
  return accounts.get(userId);
}

async function registerGuest(deps: RegisterDeps, body: RegisterBody) {
  if (!deps.policy.guests) throw forbidden('Guest access is disabled');
  const account = await deps.accounts.create({ guest: true });
  const { initial_device_display_name } = body;
  return logInUnlessInhibited(deps, account, { initial_device_display_name });
}

async function registerForAppservice(deps: RegisterDeps, request: FastifyRequest, body: RegisterBody) {
  const { accounts, appservices } = deps;
  const token = accessToken(request);
  if (token === undefined) throw new MatrixError(401, 'M_MISSING_TOKEN', 'Missing access token');
  const appservice = appservices.byToken(token);
  if (!appservice) throw new MatrixError(401, 'M_UNKNOWN_TOKEN', 'This is no application service');
  const { username } = body;
  if (username === undefined) throw missingParam('username is missing');
  const userId = await accounts.checkAvailable(username, appservice.id);
  if (!appservice.isInterested(userId))
    throw new MatrixError(400, 'M_EXCLUSIVE', 'This user name is in no namespace of the application service');
  const account = await accounts.create({ localpart: username, appserviceId: appservice.id });
  return logInUnlessInhibited(deps, account, body);
}

async function logInUnlessInhibited(
  { sessions }: RegisterDeps,
  { userId }: Account,
  { inhibit_login, device_id, initial_device_display_name, refresh_token }: RegisterBody,
) {
  if (inhibit_login) return { user_id: userId };
  const tokens = await sessions.logIn({
    userId,
    deviceId: device_id,
    deviceDisplayName: initial_device_display_name,
    refreshable: refresh_token,
  });
  return { user_id: userId, ...tokens };
}

function unlessRefused(error: unknown): void {
  if (!(error instanceof MatrixError)) throw error;
}
