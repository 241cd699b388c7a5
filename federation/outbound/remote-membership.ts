import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { RemoteHandshakes } from '@trellis/rooms/remote-handshakes.ts';
import type { FederationClient } from './client.ts';
import { FederationError } from './federation-error.ts';
import * as calls from './membership-calls.ts';

/** The handshakes for memberships as rooms see them: each failure is an error for the client who waits. */
export function remoteHandshakes(client: FederationClient): RemoteHandshakes {
  return {
    makeJoin: (server, roomId, userId, versions) =>
      forClient(calls.makeJoin(client, server, roomId, userId, versions)),
    async sendJoin(server, { roomId, eventId, pdu }, options) {
      const answer = await forClient(calls.sendJoin(client, server, roomId, eventId, pdu, options));
      const { event, membersOmitted, serversInRoom } = answer;
      if (!membersOmitted) return { event };
      if (!options.omitMembers) throw unusable(server, 'it left members out, unasked');
      if (!serversInRoom)
        throw unusable(server, 'it left members out without saying which servers are there');
      return { event, serversInRoom };
    },
    makeKnock: (server, roomId, userId, versions) =>
      forClient(calls.makeKnock(client, server, roomId, userId, versions)),
    sendKnock: (server, { roomId, eventId, pdu }) =>
      forClient(calls.sendKnock(client, server, roomId, eventId, pdu)),
    makeLeave: (server, roomId, userId) => forClient(calls.makeLeave(client, server, roomId, userId)),
    sendLeave: (server, { roomId, eventId, pdu }) =>
      forClient(calls.sendLeave(client, server, roomId, eventId, pdu)),
    sendInvite: (server, { roomId, eventId, pdu, version }, inviteRoomState) =>
      forClient(
        calls.sendInvite(client, server, {
          roomId,
          eventId,
          roomVersion: version.id,
          event: pdu,
          inviteRoomState: [...inviteRoomState],
        }),
      ),
  };
}

/** Has another server issue the invite that follows from a third-party one of its user's. */
export function remoteExchange(client: FederationClient) {
  return (server: string, roomId: string, invite: JsonObject): Promise<void> =>
    forClient(calls.exchangeThirdPartyInvite(client, server, roomId, invite));
}

async function forClient<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    if (!(error instanceof FederationError)) throw error;
    // What was wrong was our request to the other server, not the client's to us (spec: the 400 of each endpoint).
    if (error.errcode === 'M_INVALID_PARAM' || error.errcode === 'M_MISSING_PARAM')
      throw unusable(error.destination, `it answered ${error.errcode}`);
    // The client is told little; the log needs to know.
    throw Object.assign(error.toMatrixError(), { cause: error });
  }
}

function unusable(server: string, why: string): MatrixError {
  return new MatrixError(502, 'M_UNKNOWN', `The request to ${server} failed: ${why}`);
}
