import type { RemoteServers } from '@trellis/rooms/remote-servers.ts';
import type { FederationClient } from './client.ts';
import * as calls from './event-calls.ts';

/** Other servers as rooms see them. */
export function remoteServers(client: FederationClient): RemoteServers {
  return {
    event: (server, eventId) => calls.getEvent(client, server, eventId),
    missingEvents: (server, roomId, query) => calls.getMissingEvents(client, server, roomId, query),
    stateIds: (server, roomId, eventId) => calls.getStateIds(client, server, roomId, eventId),
    state: (server, roomId, eventId, take) => calls.getState(client, server, roomId, eventId, take),
    eventAuth: (server, roomId, eventId) => calls.getEventAuth(client, server, roomId, eventId),
    backfill: (server, roomId, from, limit) => calls.backfill(client, server, roomId, from, limit),
    timestampToEvent: (server, roomId, ts, dir) => calls.timestampToEvent(client, server, roomId, ts, dir),
  };
}
