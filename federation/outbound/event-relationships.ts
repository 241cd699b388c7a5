import type { RemoteThreads } from '@trellis/rooms/threading-msc2836/explore.ts';
import { AnswerReader } from './answers.ts';
import type { FederationClient } from './client.ts';

const MAX_EVENTS = 500;
const MAX_AUTH_EVENTS = 100_000;

/** Parts of threads that other servers know (MSC2836: "Querying relationships over federation"). */
export function remoteThreads(client: FederationClient): RemoteThreads {
  return {
    async eventRelationships(destination, roomId, eventId, query) {
      const answer = await client.request({
        method: 'POST',
        destination,
        path: '/_matrix/federation/unstable/event_relationships',
        body: { ...query, event_id: eventId, room_id: roomId },
        timeoutMs: 30_000,
      });
      const read = new AnswerReader(destination, answer);
      return {
        events: read.pdus('events', MAX_EVENTS),
        authChain: read.pdus('auth_chain', MAX_AUTH_EVENTS),
      };
    },
  };
}
