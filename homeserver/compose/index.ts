import { createRoomRoutes } from '@trellis/client-api/create-room.ts';
import { membershipRoutes } from '@trellis/client-api/membership.ts';
import { roomSendRoutes } from '@trellis/client-api/room-send.ts';
import { syncRoutes } from '@trellis/client-api/sync/routes.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import { Membership } from '@trellis/rooms/membership.ts';
import { Transactions } from '@trellis/rooms/transactions.ts';
import type { FastifyInstance } from 'fastify';
import { composeAccounts } from './accounts.ts';
import type { Core } from './core.ts';
import { composeFederationTransport } from './federation.ts';
import { composeMedia } from './media.ts';

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

  const accounts = composeAccounts(core, {
    deviceLists: { changed: async () => {} },
    remoteProfiles: { query: async () => ({}) },
  });
  const { profile } = accounts;
  const no = async (): Promise<never> => {
    throw new Error('not federated');
  };
  const membership = new Membership({
    rooms,
    memberships,
    remote: { join: no, leave: no, knock: no, invite: no },
    profile,
  });
  accounts.connect(membership);
  const aliases = new Aliases(db, rooms, async () => undefined);
  const transactions = new Transactions(db);

  app.register(async (scope) => {
    accounts.guard(scope);
    accounts.routes(scope, {});
    media.clientRoutes(scope);
    createRoomRoutes(scope, {
      rooms,
      membership,
      aliases,
      profile,
      defaultVersion: config.rooms.default_version,
    });
    membershipRoutes(scope, { rooms, membership, memberships, aliases });
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
    accounts.openRoutes(scope);
    transport.routes(scope, (authenticated) => media.federationRoutes(authenticated));
  });
}
