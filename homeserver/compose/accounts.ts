import { accountRoutes } from '@trellis/client-api/account.ts';
import { adminRoutes } from '@trellis/client-api/admin.ts';
import { authFallbackRoutes } from '@trellis/client-api/auth-fallback.ts';
import { type Authenticate, authenticateRequests } from '@trellis/client-api/authentication.ts';
import { createAuthenticator } from '@trellis/client-api/authenticator.ts';
import { capabilitiesRoutes } from '@trellis/client-api/capabilities.ts';
import { devicesRoutes } from '@trellis/client-api/devices.ts';
import { loginRoutes } from '@trellis/client-api/login.ts';
import { loginPage } from '@trellis/client-api/login-page.ts';
import { logoutRoutes } from '@trellis/client-api/logout.ts';
import { mutualRoomsRoutes } from '@trellis/client-api/mutual-rooms.ts';
import { openIdRoutes } from '@trellis/client-api/openid.ts';
import { profileRoutes } from '@trellis/client-api/profile.ts';
import { limitRates, type RateCategory, type RateLimits } from '@trellis/client-api/rate-limits.ts';
import { refreshRoutes } from '@trellis/client-api/refresh.ts';
import { registerRoutes } from '@trellis/client-api/register.ts';
import { reportUserRoutes } from '@trellis/client-api/report-user.ts';
import { ssoRoutes } from '@trellis/client-api/sso.ts';
import { synapseAdminRegisterRoutes } from '@trellis/client-api/synapse-admin-register.ts';
import {
  noThirdPartyNetworks,
  type ThirdPartyNetworks,
  thirdPartyRoutes,
} from '@trellis/client-api/third-party.ts';
import { threepidPages } from '@trellis/client-api/threepid-pages.ts';
import { threepidRoutes } from '@trellis/client-api/threepids.ts';
import { turnRoutes } from '@trellis/client-api/turn.ts';
import { userDirectoryRoutes } from '@trellis/client-api/user-directory.ts';
import { versionsRoutes } from '@trellis/client-api/versions.ts';
import { clientDiscovery, wellKnownRoutes } from '@trellis/client-api/well-known.ts';
import { whoamiRoutes } from '@trellis/client-api/whoami.ts';
import { openIdRoutes as openIdUserInfoRoutes } from '@trellis/federation/inbound/openid.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Mailer } from '@trellis/push/mailer.ts';
import { GuestAccess } from '@trellis/rooms/guest-access.ts';
import type { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import { UserVisibility } from '@trellis/rooms/user-visibility.ts';
import { Accounts } from '@trellis/users/accounts.ts';
import { type AppserviceTokens, noAppservices } from '@trellis/users/appservice-users.ts';
import { Deactivation } from '@trellis/users/deactivation.ts';
import { type DeviceLists, Devices } from '@trellis/users/devices.ts';
import { createLoginTokens, removeExpired } from '@trellis/users/expiring-tokens.ts';
import { createOpenIdTokens } from '@trellis/users/openid.ts';
import { Passwords } from '@trellis/users/passwords.ts';
import { Profiles, type RemoteProfiles } from '@trellis/users/profiles.ts';
import { RegistrationTokens } from '@trellis/users/registration-tokens.ts';
import { Sessions } from '@trellis/users/sessions.ts';
import type { Rate } from '@trellis/users/token-buckets.ts';
import { Uia } from '@trellis/users/uia.ts';
import { UserDirectory } from '@trellis/users/user-directory.ts';
import { UserReports } from '@trellis/users/user-reports.ts';
import type { FastifyInstance } from 'fastify';
import type { Config } from '../config/schema.ts';
import type { Core } from './core.ts';
import { DirectoryFeed } from './directory-feed.ts';
import { passwordConfig } from './password-config.ts';
import { clientExtra } from './rtc.ts';
import { composeSignUpConditions } from './sign-up-conditions.ts';
import { composeThreepids } from './threepids.ts';

export interface AccountsParts {
  /** `undefined`: no mail is sent. */
  readonly mailer?: Mailer | undefined;
  readonly deviceLists: DeviceLists;
  readonly remoteProfiles: RemoteProfiles;
  readonly appservices?: AppserviceTokens;
  readonly joins: JoinsUnderWay;
}

/** What other areas give to the routes. */
export interface AccountsRouteParts {
  readonly isCrossSigningKey?: (userId: string, keyId: string) => Promise<boolean>;
  readonly networks?: ThirdPartyNetworks;
  readonly unstableFeatures?: Readonly<Record<string, boolean>>;
}

const CLEAN_UP_MS = 600_000;
const UNLIMITED: Rate = { perSecond: Number.POSITIVE_INFINITY, burst: 1 };

export type AccountsArea = ReturnType<typeof composeAccounts>;

/**
 * Accounts and all that belongs to them. `guard` first makes a scope authenticate and count its requests; `connect`
 * ties accounts to rooms; `routes` and `openRoutes` serve the APIs, the latter without guard.
 */
export function composeAccounts(core: Core, parts: AccountsParts) {
  const services = accountServices(core, parts);
  return {
    ...services,
    /** The part of a profile that member events show. */
    profile: (userId: string) => services.profiles.visible(userId),

    guard(scope: FastifyInstance): void {
      authenticateRequests(scope, services.authenticate);
      if (core.config.rate_limits.enabled) limitRates(scope, rateLimits(core.config), core.cluster);
    },

    connect: (membership: Membership) => connect(core, services, membership),

    routes: (scope: FastifyInstance, others: AccountsRouteParts) => routes(core, services, scope, others),

    /** Federation's endpoint for tokens given out here, which takes no signature. */
    openRoutes: (app: FastifyInstance) => openIdUserInfoRoutes(app, services),
  };
}

type Services = ReturnType<typeof accountServices>;

function accountServices(core: Core, parts: AccountsParts) {
  const { config, db, serverName, rooms, cluster } = core;
  const { sessions: lifetimes, rate_limits: limits } = config;
  const appservices = parts.appservices ?? noAppservices;
  const accounts = new Accounts({
    db,
    serverName,
    passwords: new Passwords(passwordConfig(config)),
    cluster,
    appservices,
    failedLogins: limits.enabled ? rateOf(limits.failed_login) : UNLIMITED,
  });
  const devices = new Devices({ db, deviceLists: parts.deviceLists });
  const sessions = new Sessions({
    db,
    devices,
    cluster,
    refreshableTokenLifetimeMs: lifetimes.refreshable_token_lifetime_ms,
    accessTokenLifetimeMs: lifetimes.access_token_lifetime_ms,
    refreshTokenLifetimeMs: lifetimes.refresh_token_lifetime_ms,
  });
  const profiles = new Profiles({ db, accounts, remote: parts.remoteProfiles, cluster });
  const visibility = new UserVisibility(db, rooms);
  const searchAllUsers = config.user_directory.search_all_users;
  const directory = new UserDirectory({ db, serverName, visibility, searchAllUsers });
  const registrationTokens = new RegistrationTokens(db);
  const threepids = composeThreepids(core, { accounts, mailer: parts.mailer });
  const { threepidSessions } = threepids;
  const signUp = composeSignUpConditions(core);
  const uia = new Uia({ db, accounts, registrationTokens, threepidSessions, ...signUp });
  const authenticate: Authenticate = createAuthenticator({ accounts, sessions, devices, appservices });
  const feed = new DirectoryFeed(rooms, directory, parts.joins, core.log);
  const cleaning = setInterval(() => {
    if (!cluster.owns('task', 'expired-tokens')) return;
    removeExpired(db).catch((err: unknown) => core.log.warn({ err }, 'expired tokens not removed'));
  }, CLEAN_UP_MS).unref();
  core.onClose(async () => {
    clearInterval(cleaning);
    await Promise.all([devices.close(), feed.close()]);
  });
  return {
    ...threepids,
    ...signUp,
    accounts,
    appservices,
    authenticate,
    deactivation: new Deactivation({ db, accounts, devices, profiles, directory }),
    devices,
    directory,
    loginTokens: createLoginTokens(db),
    openIdTokens: createOpenIdTokens(db),
    profiles,
    registrationTokens,
    reports: new UserReports(db),
    sessions,
    uia,
  };
}

/** Profiles go into rooms and the user directory; who is deactivated leaves; guests go where they are not welcome. */
function connect(core: Core, services: Services, membership: Membership): void {
  const { accounts, profiles, directory, deactivation } = services;
  const { rooms, memberships, log } = core;
  accounts.onCreated(async ({ userId, isGuest }) => {
    const { displayname, avatar_url } = await profiles.visible(userId);
    if (!isGuest) await directory.setLocal(userId, displayname, avatar_url);
  });
  profiles.onChange(async (userId, { displayname, avatar_url }) => {
    const account = await accounts.get(userId);
    if (!account?.isGuest) await directory.setLocal(userId, displayname, avatar_url);
    await membership.profileChanged(userId);
  });
  deactivation.onDeactivated(async (userId, { erase }) => {
    if (erase) await rooms.parts.erased?.erase(userId, rooms.parts.stream.current);
    for (const { roomId, membership: current } of [...(await memberships.of(userId)).values()])
      if (current === 'join' || current === 'invite' || current === 'knock')
        await membership.leave(roomId, userId).catch(unlessRefused);
  });
  const { cluster } = core;
  // By one process, also what one that has died was at.
  const resume = () => (cluster.owns('task', 'deactivations') ? deactivation.resume() : undefined);
  core.onReady(resume);
  cluster.onHandover({
    take: () =>
      void resume()?.catch((err: unknown) => log.warn({ err }, 'deactivations not carried through')),
  });
  const isGuest = async (userId: string) => (await accounts.get(userId))?.isGuest ?? false;
  new GuestAccess(rooms, { isGuest, leave: (roomId, userId) => membership.leave(roomId, userId) }, (err) =>
    log.warn({ err }, 'guests not removed'),
  );
}

function unlessRefused(error: unknown): void {
  if (!(error instanceof MatrixError)) throw error;
}

function routes(
  core: Core,
  services: Services,
  scope: FastifyInstance,
  { isCrossSigningKey, networks = noThirdPartyNetworks, unstableFeatures }: AccountsRouteParts,
): void {
  const { config, serverName, memberships } = core;
  const { turn, registration, well_known: known } = config;
  const wellKnown = {
    publicUrl: config.public_url,
    delegatedTo: known.server,
    clientExtra: clientExtra(config),
    support: known.support,
  };
  versionsRoutes(scope, { unstableFeatures });
  wellKnownRoutes(scope, wellKnown);
  capabilitiesRoutes(scope, {
    ...services,
    defaultRoomVersion: config.rooms.default_version,
    forgetsOnLeave: config.rooms.forget_on_leave,
  });
  registerRoutes(scope, { ...services, policy: registration });
  authFallbackRoutes(scope, services);
  loginPage(scope);
  loginRoutes(scope, { ...services, discovery: clientDiscovery(wellKnown), isCrossSigningKey });
  logoutRoutes(scope, services);
  ssoRoutes(scope);
  refreshRoutes(scope, services);
  whoamiRoutes(scope);
  devicesRoutes(scope, services);
  accountRoutes(scope, services);
  threepidRoutes(scope, services);
  threepidPages(scope, { sessions: services.threepidSessions });
  profileRoutes(scope, services);
  userDirectoryRoutes(scope, services);
  openIdRoutes(scope, { ...services, serverName });
  turnRoutes(scope, {
    turn: turn && { uris: turn.uris, sharedSecret: turn.shared_secret, lifetimeMs: turn.lifetime_ms },
  });
  adminRoutes(scope, services);
  mutualRoomsRoutes(scope, { memberships });
  reportUserRoutes(scope, services);
  thirdPartyRoutes(scope, { networks });
  synapseAdminRegisterRoutes(scope, { ...services, sharedSecret: registration.shared_secret });
}

function rateLimits({ rate_limits: limits }: Config): RateLimits {
  const categories = [
    'messages',
    'joins',
    'invites',
    'room_creation',
    'login',
    'registration',
    'other',
  ] as const;
  const rates = categories.map((name): [RateCategory, Rate] => [name, rateOf(limits[name])]);
  return Object.fromEntries(rates) as Record<RateCategory, Rate>;
}

function rateOf({ per_second, burst }: { per_second: number; burst: number }): Rate {
  return { perSecond: per_second, burst };
}
