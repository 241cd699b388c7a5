import { authenticateRequests } from '@trellis/client-api/authentication.ts';
import { createAuthenticator } from '@trellis/client-api/authenticator.ts';
import { createRoomRoutes } from '@trellis/client-api/create-room.ts';
import { membershipRoutes } from '@trellis/client-api/membership.ts';
import { roomSendRoutes } from '@trellis/client-api/room-send.ts';
import { syncRoutes } from '@trellis/client-api/sync/routes.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import { Membership } from '@trellis/rooms/membership.ts';
import { Transactions } from '@trellis/rooms/transactions.ts';
import { Accounts } from '@trellis/users/accounts.ts';
import { noAppservices } from '@trellis/users/appservice-users.ts';
import { Devices } from '@trellis/users/devices.ts';
import { Passwords } from '@trellis/users/passwords.ts';
import { Profiles } from '@trellis/users/profiles.ts';
import { Sessions } from '@trellis/users/sessions.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import { composeFederationTransport } from './federation.ts';
import { composeMedia } from './media.ts';
import { passwordConfig } from './password-config.ts';

export const SOFTWARE = { name: 'Trellis', version: '0.1.0' };

/** Builds every service on the engine and plugs every API into the HTTP server. */
export async function compose(core: Core, app: FastifyInstance): Promise<void> {
  const { config, db, serverName, signingKey, rooms, memberships } = core;
  const transport = await composeFederationTransport({
    config: config.federation,
    db,
    serverName,
    signingKey,
    software: SOFTWARE,
  });
  core.onClose(() => transport.close());
  const media = await composeMedia(core, transport);

  const accounts = new Accounts({ db, serverName, passwords: new Passwords(passwordConfig(config)) });
  const devices = new Devices({ db, deviceLists: { changed: async () => {} } });
  core.onClose(() => devices.close());
  const sessions = new Sessions({ db, devices });
  const profiles = new Profiles({ db, accounts, remote: { query: async () => ({}) } });
  const profile = (userId: string) => profiles.visible(userId);
  const no = async (): Promise<never> => {
    throw new Error('not federated');
  };
  const membership = new Membership({
    rooms,
    memberships,
    remote: { join: no, leave: no, knock: no, invite: no },
    profile,
  });
  const aliases = new Aliases(db, rooms, async () => undefined);
  const transactions = new Transactions(db);

  app.get('/_matrix/client/versions', async () => ({ versions: ['v1.11'] }));
  app.post<{ Body: { username: string; password: string } }>(
    '/_matrix/client/v3/register',
    async (request) => {
      const account = await accounts.create({
        localpart: request.body.username,
        password: request.body.password,
      });
      return { user_id: account.userId, ...(await sessions.logIn({ userId: account.userId })) };
    },
  );
  app.register(async (scope) => {
    authenticateRequests(
      scope,
      createAuthenticator({ accounts, sessions, devices, appservices: noAppservices }),
    );
    media.clientRoutes(scope);
    createRoomRoutes(scope, {
      rooms,
      membership,
      aliases,
      profile,
      defaultVersion: config.rooms.default_version,
    });
    membershipRoutes(scope, { membership, memberships, aliases });
    roomSendRoutes(scope, { rooms, transactions, aliases });
    syncRoutes(scope, {
      sources: {
        rooms,
        memberships,
        notifier: core.notifier,
        filter: async (_u, text) => (text?.startsWith('{') ? JSON.parse(text) : {}),
        accountData: async () => [],
        receipts: async () => undefined,
        typing: () => [],
        toDevice: async (_u, _d, _f, to) => ({ events: [], upTo: to, more: false }),
        toDeviceReceived: async () => {},
        deviceListChanges: async () => [],
        keyCounts: async () => ({ oneTimeKeys: {}, unusedFallbackTypes: [] }),
        presence: async () => [],
        presenceEnabled: false,
        touchPresence: () => {},
        unread: async () => ({ notify: 0, highlight: 0, threads: new Map() }),
        ignoredUsers: async () => new Set(),
      },
      relations: async () => new Map(),
    });
  });
  app.register(async (scope) => {
    transport.routes(scope, (authenticated) => media.federationRoutes(authenticated));
  });
}
