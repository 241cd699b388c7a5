import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { badJson, forbidden, unrecognized } from '@trellis/protocol/errors.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { Profiles } from '@trellis/users/profiles.ts';
import type { Sessions } from '@trellis/users/sessions.ts';
import '@trellis/cluster/owned-routes.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';

export interface SharedSecretRegistrationDeps {
  readonly accounts: Accounts;
  readonly sessions: Sessions;
  readonly profiles: Profiles;
  /** `undefined`: not served. */
  readonly sharedSecret: string | undefined;
}

interface RegistrationBody {
  nonce: string;
  username: string;
  password: string;
  mac: string;
  displayname?: string;
  admin?: boolean;
  user_type?: string | null;
  inhibit_login?: boolean;
}

const NONCE_LIFETIME_MS = 60_000;

const body = Type.Object({
  nonce: Type.String(),
  username: Type.String({ maxLength: 512 }),
  password: Type.String(),
  mac: Type.String({ pattern: '^[0-9a-f]{40}$' }),
  displayname: Type.Optional(Type.String()),
  admin: Type.Optional(Type.Boolean()),
  user_type: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  inhibit_login: Type.Optional(Type.Boolean()),
});

/**
 * Registration by scripts that know a secret, as Synapse has it: whether registration is open or not, and for the
 * first administrators. A nonce keeps a request that was overheard from being made again.
 */
export function synapseAdminRegisterRoutes(app: FastifyInstance, deps: SharedSecretRegistrationDeps): void {
  const { accounts, sessions, profiles, sharedSecret } = deps;
  const path = '/_synapse/admin/v1/register';
  const nonces = new RecentlyUsed<string, true>(10_000, { ttl: NONCE_LIFETIME_MS });
  // One process knows the nonces.
  const config = { auth: 'none', rateLimit: 'registration', duty: 'user', key: () => path } as const;
  if (sharedSecret === undefined) {
    const absent = async () => {
      throw unrecognized(404, 'Registration by a shared secret is not configured');
    };
    app.get(path, { config }, absent);
    app.post(path, { config }, absent);
    return;
  }

  app.get(path, { config }, async () => {
    const nonce = randomBytes(32).toString('hex');
    nonces.set(nonce, true);
    return { nonce };
  });

  app.post<{ Body: RegistrationBody }>(path, { schema: { body }, config }, async (request) => {
    const { nonce, username, password, mac, admin = false, displayname, inhibit_login } = request.body;
    if (!nonces.delete(nonce)) throw badJson('Unknown or used nonce');
    if ([username, password].some((text) => text.includes('\0'))) throw badJson('U+0000 is not allowed');
    if (!timingSafeEqual(Buffer.from(mac, 'hex'), expectedMac(sharedSecret, request.body)))
      throw forbidden('The HMAC is wrong');
    const { userId } = await accounts.create({ localpart: username, password, admin });
    if (displayname) await profiles.set(userId, 'displayname', displayname);
    const home = { user_id: userId, home_server: accounts.serverName };
    return inhibit_login ? home : { ...home, ...(await sessions.logIn({ userId })) };
  });
}

function expectedMac(
  secret: string,
  { nonce, username, password, admin, user_type }: RegistrationBody,
): Buffer {
  const parts = [nonce, username, password, admin ? 'admin' : 'notadmin', ...(user_type ? [user_type] : [])];
  return createHmac('sha1', secret).update(parts.join('\0')).digest();
}
