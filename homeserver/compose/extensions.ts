import { dehydratedDeviceRoutes } from '@trellis/client-api/dehydrated-device.ts';
import { RECEIVED_SETTING, ReceivedReceipts } from '@trellis/client-api/received-receipts.ts';
import { rendezvousRoutes } from '@trellis/client-api/rendezvous.ts';
import { etagRendezvousRoutes } from '@trellis/client-api/rendezvous-etag.ts';
import { RendezvousSessions } from '@trellis/client-api/rendezvous-sessions.ts';
import { rtcTransportsRoutes } from '@trellis/client-api/rtc-transports.ts';
import type { SyncSources } from '@trellis/client-api/sync/sources.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { followMissed } from '@trellis/rooms/missed-events.ts';
import { RelatedRedactions } from '@trellis/rooms/related-redactions.ts';
import { StickyEvents } from '@trellis/rooms/sticky-events.ts';
import type { AccountData } from '@trellis/users/account-data.ts';
import type { Deactivation } from '@trellis/users/deactivation.ts';
import type { Devices } from '@trellis/users/devices.ts';
import { DehydratedDevices } from '@trellis/users/e2ee/dehydrated-devices.ts';
import type { DeviceKeys } from '@trellis/users/e2ee/device-keys.ts';
import { ProfileChanges } from '@trellis/users/profile-changes.ts';
import type { Profiles } from '@trellis/users/profiles.ts';
import type { ToDevice } from '@trellis/users/to-device.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import { rtcTransports } from './rtc.ts';

export interface ExtensionParts {
  readonly accountData: AccountData;
  readonly deactivation: Deactivation;
  readonly devices: Devices;
  readonly deviceKeys: DeviceKeys;
  readonly profiles: Profiles;
  readonly toDevice: ToDevice;
}

const TIDY_MS = 600_000;

export type ExtensionsArea = ReturnType<typeof composeExtensions>;

/** What clients use beyond the released specification, as far as it has no other place. */
export function composeExtensions(core: Core, parts: ExtensionParts) {
  const services = extensionServices(core, parts);
  const { received, relatedRedactions, profileChanges, sticky } = services;
  followOthers(core, parts, services);
  const tidy = async () => {
    if (!core.cluster.owns('task', 'tidy-rooms')) return;
    await Promise.all([relatedRedactions.prune(), core.rooms.parts.redactedOriginals?.removeExpired()]).catch(
      (err: unknown) => core.log.warn({ err }, 'removing what has expired failed'),
    );
  };
  const timer = setInterval(tidy, TIDY_MS).unref();
  core.onReady(async () => {
    await Promise.all([sticky.start(), relatedRedactions.start()]);
  });
  core.onClose(async () => {
    clearInterval(timer);
    received.close();
    sticky.close();
    await relatedRedactions.idle();
  });
  return {
    relatedRedactions,
    unstableFeatures: unstableFeatures(core),
    /** For syncs, besides what `receipts` lets through. */
    sources: {
      sticky,
      profileChanges,
      confirmed: (userId, events) => received.confirmed(userId, events),
    } satisfies Partial<SyncSources>,
    /** Receipts with those of ours (docs/received-receipts.md) among them. */
    receipts: (others: SyncSources['receipts']): SyncSources['receipts'] => withReceived(others, received),
    clientRoutes: (scope: FastifyInstance) => clientRoutes(core, parts, services, scope),
  };
}

type Services = ReturnType<typeof extensionServices>;

function extensionServices(core: Core, { accountData, devices, deviceKeys }: ExtensionParts) {
  const { config, db, log, memberships, notifier, rooms, streams, cluster } = core;
  return {
    dehydrated: new DehydratedDevices({ db, devices, deviceKeys, cluster }),
    profileChanges: new ProfileChanges({
      db,
      stream: streams.presence,
      cluster,
      wake: (userId) => notifier.wakeSharers(userId),
    }),
    received: new ReceivedReceipts({
      rooms,
      memberships,
      notifier,
      accountData,
      stream: streams.receipts,
      cluster,
      byDefault: config.received_receipts.by_default,
    }),
    relatedRedactions: new RelatedRedactions(db, rooms, (err) =>
      log.warn({ err }, 'redacting what relates to a redacted event failed'),
    ),
    sessions: new RendezvousSessions({ cluster }),
    sticky: new StickyEvents(db, rooms),
  };
}

function followOthers(
  { config, log, memberships, rooms, serverName, streams }: Core,
  { deactivation, profiles }: ExtensionParts,
  { profileChanges, received }: Services,
): void {
  profiles.onFieldChange((userId, field) => profileChanges.record(userId, field));
  streams.accountData.subscribe((_pos, { userId, roomId, type }) => {
    if (roomId === null && type === RECEIVED_SETTING) received.settingChanged(userId);
  });
  deactivation.onDeactivated(async (userId) => {
    await rooms.parts.redactedOriginals?.erase(userId);
  });
  if (!config.rooms.forget_on_leave) return;
  const failed = (err: unknown) => log.warn({ err }, 'a room that was left is not forgotten');
  const forget = async (roomId: string, userId: string, membership: unknown) => {
    if ((membership === 'leave' || membership === 'ban') && serverNameOf(userId) === serverName)
      await memberships.forget(userId, roomId);
  };
  // By the process that has stored the leave.
  rooms.parts.stream.subscribe((_pos, { roomId, memberships: changes, isFromElsewhere }) => {
    if (isFromElsewhere) return;
    for (const { userId, after } of changes) forget(roomId, userId, after).catch(failed);
  });
  followMissed(
    rooms,
    async ({ roomId, type, stateKey, content }) => {
      if (type === 'm.room.member') await forget(roomId, stateKey!, content.membership);
    },
    failed,
  );
}

function withReceived(others: SyncSources['receipts'], received: ReceivedReceipts): SyncSources['receipts'] {
  return async (roomId, userId, from, to) => {
    const content = await others(roomId, userId, from, to);
    const own = received.contentFor(roomId, userId, from, to);
    if (!own || !content) return own ?? content;
    const merged: Record<string, object> = { ...content };
    for (const [eventId, types] of Object.entries(own)) merged[eventId] = { ...merged[eventId], ...types };
    return merged;
  };
}

/** Under the names by which clients look for them. */
function unstableFeatures({ config, rooms }: Core): Record<string, boolean> {
  return {
    'com.beeper.msc4169': true,
    'fi.mau.msc2815': rooms.parts.redactedOriginals !== undefined,
    'io.element.msc4388': config.rendezvous.enabled,
    'org.matrix.msc3814': true,
    'org.matrix.msc3912': true,
    'org.matrix.msc4108': config.rendezvous.enabled,
    'org.matrix.msc4143': true,
    'org.matrix.msc4151': true,
    'org.matrix.msc4222': true,
    'org.matrix.msc4260': true,
    'org.matrix.msc4354': true,
    'org.matrix.msc4429': true,
    'uk.timedout.msc4323': true,
  };
}

function clientRoutes(
  { config, streams }: Core,
  { toDevice }: ExtensionParts,
  { dehydrated, sessions }: Services,
  scope: FastifyInstance,
): void {
  dehydratedDeviceRoutes(scope, {
    dehydrated,
    toDevice,
    toDevicePosition: () => streams.toDevice.current,
  });
  rtcTransportsRoutes(scope, { transports: rtcTransports(config) });
  if (!config.rendezvous.enabled) return;
  rendezvousRoutes(scope, { sessions });
  etagRendezvousRoutes(scope, {
    sessions,
    ...(config.public_url !== undefined && { publicUrl: config.public_url.replace(/\/+$/, '') }),
  });
}
