import { accountDataRoutes } from '@trellis/client-api/account-data.ts';
import { filterRoutes } from '@trellis/client-api/filter.ts';
import { notificationRoutes } from '@trellis/client-api/notifications.ts';
import { presenceRoutes } from '@trellis/client-api/presence.ts';
import { pushRuleRoutes } from '@trellis/client-api/push-rules.ts';
import { pusherRoutes } from '@trellis/client-api/pushers.ts';
import { receiptRoutes } from '@trellis/client-api/receipts.ts';
import type { PresenceEvent, SyncSources } from '@trellis/client-api/sync/sources.ts';
import { tagRoutes } from '@trellis/client-api/tags.ts';
import { typingRoutes } from '@trellis/client-api/typing.ts';
import { ephemeralEduHandlers } from '@trellis/federation/inbound/ephemeral-edus.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { Notifications } from '@trellis/rooms/notifications.ts';
import { PushEvaluation } from '@trellis/rooms/push-evaluation.ts';
import { isServerAllowed } from '@trellis/rooms/server-acl.ts';
import { Unread } from '@trellis/rooms/unread.ts';
import { AccountData } from '@trellis/users/account-data.ts';
import type { Deactivation } from '@trellis/users/deactivation.ts';
import type { Devices } from '@trellis/users/devices.ts';
import { Filters } from '@trellis/users/filters.ts';
import { InvitePermissions } from '@trellis/users/invite-permissions.ts';
import { Presence, presenceContent } from '@trellis/users/presence.ts';
import { PushRules } from '@trellis/users/push-rules.ts';
import { Pushers } from '@trellis/users/pushers.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { RoomTags } from '@trellis/users/tags.ts';
import { ThreadSubscriptions } from '@trellis/users/thread-subscriptions.ts';
import { Typing } from '@trellis/users/typing.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import { carryOverSettings } from './successor-rooms.ts';

export interface UserDataParts {
  readonly devices: Devices;
  readonly deactivation: Deactivation;
}

/** Account data type that belongs to one device (MSC3890). */
const DEVICE_SETTINGS = 'org.matrix.msc3890.local_notification_settings.';

/** Served under their unstable names, besides what is in the spec. */
const UNSTABLE_FEATURES = {
  'org.matrix.msc2285.stable': true,
  'org.matrix.msc3026.busy_presence': true,
  'org.matrix.msc3391': true,
  'org.matrix.msc3771': true,
  'org.matrix.msc3773': true,
  'org.matrix.msc3881': true,
  'org.matrix.msc3890': true,
  'org.matrix.msc4155': true,
};

export type UserDataArea = ReturnType<typeof composeUserData>;
type Services = ReturnType<typeof userDataServices>;

/** What users keep on the server, what they show of themselves in passing, and what they have not read yet. */
export function composeUserData(core: Core, parts: UserDataParts) {
  const services = userDataServices(core, parts);
  followEvents(core, services);
  followAccounts(services, parts);
  core.onReady(() => services.presence.start());
  core.onClose(async () => {
    services.typing.close();
    await Promise.all([services.presence.close(), services.receipts.idle(), services.unread.close()]);
  });
  const { rooms, memberships } = core;
  return {
    ...services,
    sources: syncSources(services),
    unstableFeatures: UNSTABLE_FEATURES,
    carryOver: carryOverSettings(services),
    eduHandlers: ephemeralEduHandlers({
      rooms,
      memberships,
      ...services,
      isServerAllowed: (room, server) => isServerAllowed(rooms, room, server),
    }),
    clientRoutes: (scope: FastifyInstance) => clientRoutes(core, services, scope),
  };
}

function userDataServices(
  { config, db, streams, rooms, cluster, serverName }: Core,
  { devices }: UserDataParts,
) {
  const pushRules = new PushRules({ db, stream: streams.accountData, cluster });
  const accountData = new AccountData({ db, stream: streams.accountData, pushRules, cluster });
  const receipts = new Receipts({ db, stream: streams.receipts, cluster });
  const threads = new ThreadSubscriptions({ db, stream: streams.accountData, cluster });
  const evaluation = new PushEvaluation(rooms, {
    compiled: (userId) => pushRules.compiled(userId),
    ignoredUsers: (userId) => accountData.ignoredUsers(userId),
    subscribedTo: (userId) => threads.subscribedTo(userId),
  });
  return {
    pushRules,
    accountData,
    invitePermissions: new InvitePermissions(accountData),
    receipts,
    threads,
    evaluation,
    tags: new RoomTags(accountData),
    filters: new Filters(db),
    typing: new Typing(streams.typing, cluster),
    presence: new Presence({
      db,
      stream: streams.presence,
      enabled: config.presence.enabled,
      cluster,
      isLocal: (userId) => serverNameOf(userId) === serverName,
    }),
    pushers: new Pushers({
      db,
      devices,
      eventPosition: () => rooms.parts.stream.current,
      allowInsecure: config.push.allow_insecure,
    }),
    unread: new Unread({ rooms, evaluation, reads: receipts }),
    notifications: new Notifications({ rooms, evaluation, reads: receipts }),
  };
}

function followEvents({ rooms }: Core, { typing, presence }: Services): void {
  rooms.parts.stream.subscribe((_pos, { roomId, event, memberships }) => {
    presence.active(event.sender);
    for (const { userId, after } of memberships) if (after !== 'join') typing.left(roomId, userId);
  });
}

function followAccounts(services: Services, { devices, deactivation }: UserDataParts): void {
  const { accountData, filters, presence, pushRules, pushers, threads } = services;
  devices.onDeviceDeleted(async (_tx, userId, deviceIds) => async () => {
    for (const deviceId of deviceIds) await accountData.delete(userId, null, DEVICE_SETTINGS + deviceId);
  });
  deactivation.onDeactivated(async (userId) => {
    for (const service of [accountData, filters, presence, pushRules, pushers, threads])
      await service.erase(userId);
  });
}

function syncSources(services: Services) {
  const { accountData, filters, invitePermissions, presence, receipts, typing, unread } = services;
  return {
    filter: (userId, filter) => filters.resolve(userId, filter),
    accountData: (userId, from, to) => accountData.changes(userId, from, to),
    receipts: (roomId, userId, from, to) => receipts.contentFor(roomId, userId, from, to),
    typing: (roomId) => typing.in(roomId),
    presence: async (from, to) => presenceEvents(presence.changes(from, to)),
    presenceOf: (userIds) => presenceEvents(presence.of(userIds)),
    presenceEnabled: presence.enabled,
    touchPresence: (userId, deviceId, state) => presence.sync(userId, deviceId, state),
    unread: (userId, roomId) => unread.counts(userId, roomId),
    ignoredUsers: (userId) => accountData.ignoredUsers(userId),
    hidesInvite: (userId, sender) => invitePermissions.hides(userId, sender),
  } satisfies Partial<SyncSources>;
}

function presenceEvents(users: ReturnType<Presence['changes']>): PresenceEvent[] {
  const now = Date.now();
  return users.map(({ userId, state }) => ({
    type: 'm.presence',
    sender: userId,
    content: presenceContent(state, now),
  }));
}

function clientRoutes({ rooms, memberships }: Core, services: Services, scope: FastifyInstance): void {
  accountDataRoutes(scope, services);
  tagRoutes(scope, services);
  filterRoutes(scope, services);
  receiptRoutes(scope, { rooms, ...services });
  typingRoutes(scope, { rooms, ...services });
  presenceRoutes(scope, { memberships, ...services });
  pushRuleRoutes(scope, services);
  pusherRoutes(scope, services);
  notificationRoutes(scope, services);
}
