import { createRoomRoutes } from '@trellis/client-api/create-room.ts';
import { membershipRoutes } from '@trellis/client-api/membership.ts';
import { roomSendRoutes } from '@trellis/client-api/room-send.ts';
import { syncRoutes } from '@trellis/client-api/sync/routes.ts';
import { TransactionSends } from '@trellis/client-api/transaction-sends.ts';
import { eduDispatcher } from '@trellis/federation/inbound/edus.ts';
import { remoteProfiles } from '@trellis/federation/outbound/remote-rooms.ts';
import { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import type { InvitePolicy } from '@trellis/rooms/membership.ts';
import { Transactions } from '@trellis/rooms/transactions.ts';
import type { FastifyInstance } from 'fastify';
import { LimitedMembership, requireSpace } from '../membership-limits.ts';
import { composeAccounts } from './accounts.ts';
import { composeAppservices } from './appservices.ts';
import type { Core } from './core.ts';
import { composeDelayedEvents } from './delayed-events.ts';
import { composeDeviceLists, composeE2ee } from './e2ee.ts';
import { composeExtensions } from './extensions.ts';
import { composeFederationTransport, type FederationTransport } from './federation.ts';
import { composeFederationOut } from './federation-out.ts';
import { groupLimits, isExempt } from './group-limits.ts';
import { composeHandshakes } from './handshakes.ts';
import { composeJobs } from './jobs.ts';
import { composeMedia } from './media.ts';
import { composeMailer, composePush } from './push.ts';
import { composeReceive } from './receive.ts';
import { composeRoomsRead } from './rooms-read.ts';
import { composeServerNotices, noticesSender } from './server-notices.ts';
import { composeSlidingSync } from './sliding-sync.ts';
import { composeThreading } from './threading.ts';
import { composeUserData } from './userdata.ts';

export const SOFTWARE = { name: 'Trellis', version: '0.1.0' };

/** Builds every service on the engine and plugs every API into the HTTP server. */
export async function compose(core: Core, app: FastifyInstance): Promise<void> {
  const transport = await composeFederationTransport({
    ...core,
    config: core.config.federation,
    software: SOFTWARE,
  });
  core.onClose(() => transport.close());
  const areas = await composeAreas(core, transport);
  clientApi(core, app, areas);
  federationApi(core, app, transport, areas);
}

type Areas = Awaited<ReturnType<typeof composeAreas>>;

async function composeAreas(core: Core, transport: FederationTransport) {
  const { rooms, memberships } = core;
  const appservices = composeAppservices(core);
  const federationOut = composeFederationOut(core, transport);
  const lists = composeDeviceLists(core);
  const joins = new JoinsUnderWay();
  const mailer = composeMailer(core);
  const accounts = composeAccounts(core, {
    mailer,
    deviceLists: lists,
    remoteProfiles: remoteProfiles(transport.client),
    appservices: appservices.tokens,
    joins,
  });
  accounts.profiles.onMissing(appservices.madeUser);
  const e2ee = composeE2ee(core, {
    ...accounts,
    lists,
    transport,
    remoteMessages: federationOut.deviceMessages,
  });
  const userData = composeUserData(core, accounts);
  const receiving = composeReceive(core, transport);
  const roomsRead = composeRoomsRead(core, {
    ...receiving,
    transport,
    ignoredUsers: userData.sources.ignoredUsers,
    carryOver: userData.carryOver,
    appservices: appservices.rooms,
  });
  const mayInvite: InvitePolicy = (invite) => userData.invitePermissions.requireAllowed(invite);
  const threading = composeThreading(core, {
    transport,
    ...receiving,
    ...roomsRead,
    ignoredUsers: userData.sources.ignoredUsers,
  });
  const limits = groupLimits(core.config);
  const handshakes = composeHandshakes(core, {
    transport,
    receiver: receiving.receiver,
    joins,
    mayInvite,
    requireSpace: (room) => requireSpace(room.count('join'), limits),
    isLocalUser: async (userId) => {
      await accounts.profiles.ensureKnown(userId);
      return (await accounts.accounts.get(userId))?.deactivated === false;
    },
  });
  const profile = async (userId: string) => {
    await accounts.profiles.ensureKnown(userId);
    return accounts.profile(userId);
  };
  const membership = new LimitedMembership({
    db: core.db,
    limits,
    isExempt: isExempt(core, accounts),
    rooms,
    memberships,
    remote: handshakes.remote,
    profile,
    mayInvite,
    noticesSender: noticesSender(core),
  });
  accounts.connect(membership);
  const extensions = composeExtensions(core, { ...accounts, ...userData, ...e2ee });
  const delayed = composeDelayedEvents(core, { ...accounts, membership });
  appservices.connect({ ...e2ee.sources, accounts: accounts.accounts, aliases: roomsRead.aliases });
  await federationOut.connect({ deviceLists: lists, presence: userData.presence });
  const media = await composeMedia(core, transport, composeJobs(core));
  const push = await composePush(core, { transport, userData, mailer });
  accounts.threepids.onRemoved(async (userId, { medium, address }) => {
    if (medium === 'email') await userData.pushers.deleteAddress(userId, address);
  });
  return {
    accounts,
    appservices,
    delayed,
    e2ee,
    extensions,
    handshakes,
    joins,
    media,
    membership,
    push,
    receiving,
    roomsRead,
    threading,
    userData,
  };
}

function clientApi(core: Core, app: FastifyInstance, areas: Areas): void {
  const { config, rooms, memberships, notifier } = core;
  const {
    accounts,
    appservices,
    delayed,
    e2ee,
    extensions,
    handshakes,
    media,
    membership,
    push,
    roomsRead,
    threading,
    userData,
  } = areas;
  const { aliases } = roomsRead;
  const createRoom = {
    rooms,
    membership,
    aliases,
    profile: accounts.profile,
    defaultVersion: config.rooms.default_version,
    mayCreate: (creator: string) => membership.requireMayCreate(creator),
  };
  const sliding = composeSlidingSync(core);
  const transactions = new Transactions(core.db, core.cluster);
  const sends = new TransactionSends({ rooms, transactions, ...extensions });
  app.register(async (scope) => {
    accounts.guard(scope);
    accounts.routes(scope, {
      isCrossSigningKey: e2ee.isCrossSigningKey,
      unstableFeatures: {
        ...userData.unstableFeatures,
        ...delayed.unstableFeatures,
        ...extensions.unstableFeatures,
        ...sliding.unstableFeatures,
        ...threading.unstableFeatures,
      },
      networks: appservices.networks,
    });
    e2ee.clientRoutes(scope);
    userData.clientRoutes(scope);
    push.openRoutes(scope);
    delayed.clientRoutes(scope);
    extensions.clientRoutes(scope);
    composeServerNotices(core, { ...accounts, ...userData, aliases, membership }).clientRoutes(scope);
    media.clientRoutes(scope);
    appservices.clientRoutes(scope);
    threading.clientRoutes(scope);
    roomsRead.clientRoutes(scope, { createRoom, sources: userData.sources });
    createRoomRoutes(scope, createRoom, appservices.rooms);
    const { thirdPartyInvites } = handshakes;
    membershipRoutes(scope, { rooms, membership, memberships, aliases, thirdPartyInvites });
    roomSendRoutes(scope, { rooms, transactions, sends, aliases, membership, ...delayed });
    const sync = {
      sources: {
        rooms,
        memberships,
        notifier,
        ...userData.sources,
        ...e2ee.sources,
        ...extensions.sources,
        receipts: extensions.receipts(userData.sources.receipts),
      },
      relations: roomsRead.relations,
    };
    syncRoutes(scope, sync);
    sliding.clientRoutes(scope, { ...sync, threads: userData.threads });
  });
}

function federationApi(
  core: Core,
  app: FastifyInstance,
  transport: FederationTransport,
  { accounts, e2ee, handshakes, joins, media, receiving, roomsRead, threading, userData }: Areas,
): void {
  const edus = eduDispatcher(new Map([...e2ee.eduHandlers, ...userData.eduHandlers]), core.log);
  app.register(async (scope) => {
    accounts.openRoutes(scope);
    handshakes.openRoutes(scope);
    transport.routes(scope, (authenticated) => {
      media.federationRoutes(authenticated);
      handshakes.routes(authenticated);
      receiving.routes(authenticated, { edus, joins });
      e2ee.federationRoutes(authenticated);
      roomsRead.federationRoutes(authenticated, accounts);
      threading.federationRoutes(authenticated);
    });
  });
}
