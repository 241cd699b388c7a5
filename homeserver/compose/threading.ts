import type { ClientEvents } from '@trellis/client-api/client-events.ts';
import { eventRelationshipsRoutes } from '@trellis/client-api/event-relationships.ts';
import { eventRelationshipsRoutes as federationRoutes } from '@trellis/federation/inbound/event-relationships.ts';
import { remoteThreads } from '@trellis/federation/outbound/event-relationships.ts';
import { RemoteEvents } from '@trellis/rooms/remote-events.ts';
import type { RemoteServers } from '@trellis/rooms/remote-servers.ts';
import { ThreadStore } from '@trellis/rooms/threading-msc2836/thread-store.ts';
import { Threads } from '@trellis/rooms/threading-msc2836/threads.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

export interface ThreadingParts {
  readonly transport: FederationTransport;
  readonly remote: RemoteServers;
  readonly clientEvents: ClientEvents;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

/** Threads as trees (MSC2836). */
export function composeThreading(
  { db, rooms }: Core,
  { transport, remote, clientEvents, ignoredUsers }: ThreadingParts,
) {
  const threads = new Threads({
    rooms,
    ignoredUsers,
    store: new ThreadStore(db),
    remote: remoteThreads(transport.client),
    remoteEvents: new RemoteEvents({ rooms, remote, verifier: transport.keyRing }),
  });
  return {
    unstableFeatures: { 'org.matrix.msc2836': true },
    clientRoutes: (app: FastifyInstance) => eventRelationshipsRoutes(app, { threads, clientEvents }),
    federationRoutes: (app: FastifyInstance) => federationRoutes(app, { rooms, threads }),
  };
}
