import { createRoomRoutes } from '@trellis/client-api/create-room.ts';
import { membershipRoutes } from '@trellis/client-api/membership.ts';
import { roomSendRoutes } from '@trellis/client-api/room-send.ts';
import { syncRoutes } from '@trellis/client-api/sync/routes.ts';
import { eduDispatcher } from '@trellis/federation/inbound/edus.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import { Membership } from '@trellis/rooms/membership.ts';
import { Transactions } from '@trellis/rooms/transactions.ts';
import type { FastifyInstance } from 'fastify';
import { composeAccounts } from './accounts.ts';
import type { Core } from './core.ts';
import { composeDeviceLists, composeE2ee } from './e2ee.ts';
import { composeFederationTransport } from './federation.ts';
import { composeFederationOut } from './federation-out.ts';
import { composeHandshakes } from './handshakes.ts';
import { composeMedia } from './media.ts';
import { composeReceive } from './receive.ts';

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

  const federationOut = composeFederationOut(core, transport);
  const lists = composeDeviceLists(core);
  const accounts = composeAccounts(core, {
    deviceLists: lists,
    remoteProfiles: { query: async () => ({}) },
  });
  const { profile } = accounts;
  const e2ee = composeE2ee(core, {
    ...accounts,
    lists,
    transport,
    remoteMessages: federationOut.deviceMessages,
  });
  const receiving = composeReceive(core, transport);
  const handshakes = composeHandshakes(core, {
    transport,
    receiver: receiving.receiver,
    isLocalUser: async (userId) => (await accounts.accounts.get(userId))?.deactivated === false,
  });
  const membership = new Membership({
    rooms,
    memberships,
    remote: handshakes.remote,
    profile,
  });
  accounts.connect(membership);
  federationOut.connect({ deviceLists: lists, presence: { enabled: false, get: async () => undefined } });
  const aliases = new Aliases(db, rooms, async () => undefined);
  const transactions = new Transactions(db);

  app.register(async (scope) => {
    accounts.guard(scope);
    accounts.routes(scope, { isCrossSigningKey: e2ee.isCrossSigningKey });
    e2ee.clientRoutes(scope);
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
        ...e2ee.sources,
        presence: async () => [],
        presenceEnabled: false,
        touchPresence: () => () => {},
        unread: async () => ({ notify: 0, highlight: 0, threads: new Map() }),
        ignoredUsers: async () => new Set(),
      },
      relations: async () => new Map(),
    });
  });
  app.register(async (scope) => {
    accounts.openRoutes(scope);
    handshakes.openRoutes(scope);
    transport.routes(scope, (authenticated) => {
      media.federationRoutes(authenticated);
      handshakes.routes(authenticated);
      receiving.routes(authenticated, {
        edus: eduDispatcher(e2ee.eduHandlers, core.log),
        joins: handshakes.joins,
      });
      e2ee.federationRoutes(authenticated);
    });
  });
}
