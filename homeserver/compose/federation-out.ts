import { DeliveryStore } from '@trellis/federation/outbound/delivery-store.ts';
import { OutgoingEdus } from '@trellis/federation/outbound/edus.ts';
import { FederationQueues } from '@trellis/federation/outbound/queues.ts';
import { isServerName } from '@trellis/protocol/identifiers.ts';
import type { DeviceListChanges } from '@trellis/users/device-lists.ts';
import { deviceListEdus } from '@trellis/users/e2ee/device-list-edus.ts';
import type { Presence } from '@trellis/users/presence.ts';
import type { RemoteDeviceMessages } from '@trellis/users/to-device.ts';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

export interface FederationOut {
  /** For send-to-device messages. */
  readonly deviceMessages: RemoteDeviceMessages;
  /** To be called once, when those services are there. Delivery begins when the server is ready. */
  connect(services: {
    readonly deviceLists: Pick<DeviceListChanges, 'localChanges' | 'newServers'>;
    readonly presence: Pick<Presence, 'enabled' | 'get'>;
  }): Promise<void>;
}

/** What goes to other servers by itself: events, EDUs, messages to devices. */
export function composeFederationOut(core: Core, transport: FederationTransport): FederationOut {
  const { db, cluster, serverName, rooms, memberships, streams, log } = core;
  const { client, isAllowed } = transport;
  const store = new DeliveryStore(db, serverName);
  let queues: FederationQueues | undefined;
  return {
    deviceMessages: {
      store: (tx, edus) =>
        store.addEdus(
          tx,
          // Nobody would ever fetch what is for others.
          edus.filter(({ destination }) => isServerName(destination) && isAllowed(destination)),
        ),
      wake: (destinations) => queues?.wake(destinations),
    },
    async connect({ deviceLists, presence }) {
      const started = new FederationQueues({
        store,
        client,
        rooms,
        memberships,
        deviceLists: streams.deviceLists,
        devices: {
          edus: (userId, destination, from, to) => deviceListEdus(db, userId, destination, from, to),
          changes: (from, to, limit) => deviceLists.localChanges(from, to, limit),
        },
        cluster,
        isAllowed,
        log,
      });
      await started.prepare();
      queues = started;
      new OutgoingEdus({
        queues: started,
        store,
        cluster,
        rooms,
        memberships,
        streams,
        presence: presence.enabled ? presence : undefined,
        newServers: (userId, servers, options) => deviceLists.newServers(userId, servers, options),
        log,
      });
      core.onReady(() => started.start());
      core.onClose(() => started.close());
    },
  };
}
