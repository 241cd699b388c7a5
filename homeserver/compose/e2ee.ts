import { keysRoutes } from '@trellis/client-api/keys.ts';
import { keysSigningRoutes } from '@trellis/client-api/keys-signing.ts';
import { roomKeysRoutes } from '@trellis/client-api/room-keys.ts';
import type { SyncSources } from '@trellis/client-api/sync/sources.ts';
import { toDeviceRoutes } from '@trellis/client-api/to-device.ts';
import { deviceKeysRoutes } from '@trellis/federation/inbound/device-keys.ts';
import type { EduHandler } from '@trellis/federation/inbound/edus.ts';
import type { DeviceUpdates } from '@trellis/federation/outbound/device-backlog.ts';
import { remoteKeyServers } from '@trellis/federation/outbound/remote-keys.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { EventChange } from '@trellis/rooms/rooms.ts';
import type { Deactivation } from '@trellis/users/deactivation.ts';
import { DeviceListChanges } from '@trellis/users/device-lists.ts';
import type { Devices } from '@trellis/users/devices.ts';
import { CrossSigning } from '@trellis/users/e2ee/cross-signing.ts';
import { DeviceKeys } from '@trellis/users/e2ee/device-keys.ts';
import { deviceListEdus } from '@trellis/users/e2ee/device-list-edus.ts';
import { KeyBackups } from '@trellis/users/e2ee/key-backups.ts';
import { Keys } from '@trellis/users/e2ee/keys.ts';
import { RemoteDeviceLists } from '@trellis/users/e2ee/remote-device-lists.ts';
import { Signatures } from '@trellis/users/e2ee/signatures.ts';
import { UnplacedUpdates } from '@trellis/users/e2ee/unplaced-updates.ts';
import { type RemoteDeviceMessages, ToDevice } from '@trellis/users/to-device.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

const TIDY_MS = 3600_000;

/** The stream of device lists, which accounts write to before there is anything else of end-to-end encryption. */
export function composeDeviceLists({ db, streams, serverName }: Core): DeviceListChanges {
  return new DeviceListChanges({ db, stream: streams.deviceLists, serverName });
}

export interface E2eeParts {
  readonly lists: DeviceListChanges;
  readonly devices: Devices;
  readonly deactivation: Deactivation;
  readonly uia: Uia;
  readonly transport: Pick<FederationTransport, 'client'>;
  readonly remoteMessages: RemoteDeviceMessages;
}

export type E2eeArea = ReturnType<typeof composeE2ee>;

/** Keys, their backups, device lists and send-to-device messages. */
export function composeE2ee(core: Core, parts: E2eeParts) {
  const { db, serverName, streams, rooms, memberships, log, cluster } = core;
  const { lists, devices, deactivation, uia, transport, remoteMessages } = parts;
  const servers = remoteKeyServers(transport.client);
  const deviceKeys = new DeviceKeys(db, lists, devices, cluster);
  const unplaced = new UnplacedUpdates({
    db,
    lists,
    sharesRoom: (id) => sharesRoom(core, id),
    mayShareRoom: (server) => rooms.partial.includes(server),
  });
  const remoteLists = new RemoteDeviceLists({
    db,
    lists,
    servers,
    cluster,
    sharesRoom: (id) => sharesRoom(core, id),
    onUnplaced: (server, userId) => unplaced.note(server, userId),
  });
  const keys = new Keys({ db, serverName, deviceKeys, remoteLists, servers });
  const crossSigning = new CrossSigning(db, lists);
  const signatures = new Signatures({ db, lists, masterKey: (userId) => keys.masterKey(userId) });
  const backups = new KeyBackups(db);
  const toDevice = new ToDevice({
    db,
    stream: streams.toDevice,
    serverName,
    remote: remoteMessages,
    devices,
  });
  const deviceListChanges: SyncSources['deviceListChanges'] = (from, to, userId) =>
    lists.usersChanged(from, to, userId);

  deactivation.onDeactivated(async (userId) => {
    await crossSigning.forget(userId);
    await backups.forget(userId);
  });
  rooms.parts.stream.subscribe((_pos, change) => {
    const gone = noLongerWithUs(core, change);
    if (gone.length > 0)
      remoteLists.dropUnshared(gone).catch((err: unknown) => log.warn({ err }, 'device lists not dropped'));
    if (change.resynced && cluster.owns('room', change.roomId))
      placeUpdates(core, unplaced, change).catch((err: unknown) =>
        log.warn({ err }, 'device lists not passed on'),
      );
  });
  const tidy = () =>
    Promise.all([
      // What is stored by the user each process does for those that it has.
      remoteLists.tidy(),
      ...(cluster.owns('task', 'tidy-keys') ? [lists.prune(), toDevice.prune()] : []),
    ]).catch((err: unknown) => log.warn({ err }, 'tidying up keys and messages failed'));
  const timer = setInterval(tidy, TIDY_MS).unref();
  const resume = async () => {
    if (cluster.owns('task', 'device-deletions')) await lists.resume();
  };
  cluster.onHandover({
    take: () => void resume().catch((err: unknown) => log.warn({ err }, 'deleted devices not told of')),
  });
  core.onReady(async () => {
    await resume();
    void tidy();
  });
  core.onClose(() => clearInterval(timer));

  const eduHandlers: ReadonlyMap<string, EduHandler> = new Map<string, EduHandler>([
    ['m.direct_to_device', (origin, content) => toDevice.receive(origin, content)],
    ['m.device_list_update', (origin, content) => remoteLists.deviceListUpdate(origin, content)],
    ['m.signing_key_update', (origin, content) => remoteLists.signingKeyUpdate(origin, content)],
    // As servers called it before it was in the spec.
    ['org.matrix.signing_key_update', (origin, content) => remoteLists.signingKeyUpdate(origin, content)],
  ]);
  const updates: DeviceUpdates = {
    edus: (userId, destination, from, to) => deviceListEdus(db, userId, destination, from, to),
    changes: (from, to, limit) => lists.localChanges(from, to, limit),
  };

  return {
    /** For syncs. */
    sources: {
      toDevice: (userId, deviceId, from, to, limit) => toDevice.pending(userId, deviceId, from, to, limit),
      toDeviceReceived: (userId, deviceId, position) => toDevice.received(userId, deviceId, position),
      deviceListChanges,
      keyCounts: (userId, deviceId) => deviceKeys.counts(userId, deviceId),
    } satisfies Partial<SyncSources>,
    eduHandlers,
    deviceKeys,
    toDevice,
    /** For federation's queues. */
    updates,
    newServers: (userId: string, names: readonly string[]) => lists.newServers(userId, names),
    /** For log-ins, which must not take a key's name for their device. */
    isCrossSigningKey: (userId: string, keyId: string) => crossSigning.has(userId, keyId),

    clientRoutes(scope: FastifyInstance): void {
      keysRoutes(scope, { keys, deviceKeys, sources: { rooms, memberships, deviceListChanges } });
      keysSigningRoutes(scope, { crossSigning, signatures, uia });
      roomKeysRoutes(scope, { backups });
      toDeviceRoutes(scope, { toDevice });
    },

    federationRoutes(scope: FastifyInstance): void {
      deviceKeysRoutes(scope, { db, serverName, deviceKeys });
    },
  };
}

/** Whether the user is in a room that someone of this server is in too. */
async function sharesRoom({ memberships, rooms }: Core, userId: string): Promise<boolean> {
  for (const roomId of await memberships.joined(userId))
    if ((await rooms.get(roomId))?.isResident) return true;
  return false;
}

async function placeUpdates(core: Core, unplaced: UnplacedUpdates, change: EventChange): Promise<void> {
  const { missed, deviceListsPos } = change.resynced!;
  const room = await core.rooms.get(change.roomId);
  await unplaced.tellMissed(room?.joinedHere ?? new Set(), deviceListsPos, missed);
  await unplaced.place(core.rooms.partial.isAny);
}

/** Users of other servers who may have ceased to share a room with anyone here. */
function noLongerWithUs({ rooms, serverName }: Core, change: EventChange): string[] {
  const isLocal = (userId: string) => serverNameOf(userId) === serverName;
  const left = change.memberships.filter(({ before, after }) => before === 'join' && after !== 'join');
  const gone = left.map(({ userId }) => userId).filter((userId) => !isLocal(userId));
  const room = rooms.peek(change.roomId);
  if (!room || room.isResident || !left.some(({ userId }) => isLocal(userId))) return gone;
  for (const [userId, { membership }] of room.members())
    if (membership === 'join' && !isLocal(userId)) gone.push(userId);
  return gone;
}
