import { backfillRoutes } from '@trellis/federation/inbound/backfill.ts';
import type { HandleEdus } from '@trellis/federation/inbound/edus.ts';
import { eventRoutes } from '@trellis/federation/inbound/events.ts';
import { stateRoutes } from '@trellis/federation/inbound/state.ts';
import { transactionRoutes } from '@trellis/federation/inbound/transactions.ts';
import { policyServers } from '@trellis/federation/outbound/policy-servers.ts';
import { remoteServers } from '@trellis/federation/outbound/remote-servers.ts';
import { Backfill } from '@trellis/rooms/backfill.ts';
import { IncomingPdus } from '@trellis/rooms/incoming-pdus.ts';
import type { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import { MergeEnds } from '@trellis/rooms/merge-ends.ts';
import { Receiver } from '@trellis/rooms/receive.ts';
import type { RemoteServers } from '@trellis/rooms/remote-servers.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

export interface Receiving {
  readonly remote: RemoteServers;
  readonly receiver: Receiver;
  readonly backfill: Backfill;
  /** Routes for servers that sign their requests. */
  routes(app: FastifyInstance, parts: { edus: HandleEdus; joins: Pick<JoinsUnderWay, 'settled'> }): void;
}

/** Everything that takes in other servers' events, and that tells them ours. */
export function composeReceive(core: Core, transport: FederationTransport): Receiving {
  const { rooms, db, log } = core;
  const remote = remoteServers(transport.client);
  const parts = { rooms, remote, verifier: transport.keyRing };
  const ends = new MergeEnds(rooms, log);
  const receiver = new Receiver({ ...parts, onPlaced: (roomId) => void ends.note(roomId) });
  rooms.parts.policies?.connect(policyServers(transport.client));
  const backfill = new Backfill(parts, receiver);
  return {
    remote,
    receiver,
    backfill,
    routes(app, { edus, joins }) {
      const pdus = new IncomingPdus({
        ...parts,
        receiver,
        staged: new StagedPdus(db),
        joined: (roomId) => joins.settled(roomId),
        log,
      });
      core.onReady(() => {
        pdus.resume().catch((err: unknown) => log.error({ err }, 'going on with received events failed'));
      });
      // Before requests are waited for: those that wait for other servers are answered then. One process of several is
      // drained first, and meanwhile has its rooms.
      if (!core.cluster.shared) core.notifier.onClosing(() => pdus.close());
      app.addHook('preClose', (done) => {
        pdus.close();
        done();
      });
      transactionRoutes(app, { pdus, edus });
      eventRoutes(app, { rooms });
      stateRoutes(app, { rooms });
      backfillRoutes(app, { rooms });
    },
  };
}
