import type { JsonObject, JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { AnswerReader, isObject } from './answers.ts';
import { boundedBody } from './bounded-body.ts';
import { type FederationClient, type FederationRequest, path } from './client.ts';
import { FederationError } from './federation-error.ts';
import { readLists } from './list-stream.ts';

/** An event to fill in and sign. What comes from another server is data, never signed as it stands. */
export interface EventTemplate {
  /** Absent from servers that know version 1 only. */
  roomVersion: string | undefined;
  event: Pdu;
}

export interface SendJoinAnswer {
  /** The join as the resident server signed it too (restricted rooms). */
  event: Pdu | undefined;
  membersOmitted: boolean;
  serversInRoom: string[] | undefined;
}

const MAX_STATE_EVENTS = 1_000_000;
const MAX_SERVERS = 100_000;
const JOIN_TIMEOUT = 60_000;
const SEND_JOIN_TIMEOUT = 10 * 60_000;
const SEND_JOIN_MAX_BYTES = 256 * 1024 * 1024;

/** A user waits for these calls, so they are tried whatever happened before. */
const userWaits = { ignoreBackoff: true } as const;

async function makeTemplate(
  client: FederationClient,
  destination: string,
  requestPath: string,
  versions: readonly string[] | undefined,
): Promise<EventTemplate> {
  const answer = await client.request({
    ...userWaits,
    method: 'GET',
    destination,
    path: requestPath,
    query: { ver: versions },
    timeoutMs: JOIN_TIMEOUT,
    maxBytes: 256 * 1024,
  });
  const read = new AnswerReader(destination, answer);
  return { roomVersion: read.optionalString('room_version'), event: read.object('event') };
}

/** https://spec.matrix.org/v1.18/server-server-api/#get_matrixfederationv1make_joinroomiduserid */
export function makeJoin(
  client: FederationClient,
  destination: string,
  roomId: string,
  userId: string,
  versions: readonly string[],
): Promise<EventTemplate> {
  return makeTemplate(
    client,
    destination,
    path`/_matrix/federation/v1/make_join/${roomId}/${userId}`,
    versions,
  );
}

export function makeKnock(
  client: FederationClient,
  destination: string,
  roomId: string,
  userId: string,
  versions: readonly string[],
): Promise<EventTemplate> {
  return makeTemplate(
    client,
    destination,
    path`/_matrix/federation/v1/make_knock/${roomId}/${userId}`,
    versions,
  );
}

export function makeLeave(
  client: FederationClient,
  destination: string,
  roomId: string,
  userId: string,
): Promise<EventTemplate> {
  return makeTemplate(
    client,
    destination,
    path`/_matrix/federation/v1/make_leave/${roomId}/${userId}`,
    undefined,
  );
}

type TakeList = (pdus: readonly Pdu[], list: 'state' | 'auth_chain') => Promise<void>;

/**
 * Hands the room's state and its auth chain on as they come.
 * https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv2send_joinroomideventid
 */
export async function sendJoin(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
  event: Pdu,
  options: { omitMembers?: boolean; take: TakeList },
): Promise<SendJoinAnswer> {
  const send = (version: 'v1' | 'v2'): FederationRequest => ({
    ...userWaits,
    method: 'PUT',
    destination,
    path: path`/_matrix/federation/${version}/send_join/${roomId}/${eventId}`,
    query: version === 'v2' ? { omit_members: options.omitMembers } : {},
    body: event,
    timeoutMs: SEND_JOIN_TIMEOUT,
    maxBytes: SEND_JOIN_MAX_BYTES,
  });
  const answer = await withV1Fallback(destination, (version) =>
    version === 'v2' ? readJoin(client, send('v2'), options.take) : client.requestJson(send('v1')),
  );
  const read = new AnswerReader(destination, answer);
  // What has been handed on is empty here.
  for (const list of ['auth_chain', 'state'] as const)
    await options.take(read.pdus(list, MAX_STATE_EVENTS), list);
  const signed = answer.event;
  return {
    event: isObject(signed) ? signed : undefined,
    membersOmitted: answer.members_omitted === true,
    serversInRoom:
      answer.servers_in_room === undefined ? undefined : read.strings('servers_in_room', MAX_SERVERS),
  };
}

async function readJoin(
  client: FederationClient,
  request: FederationRequest,
  take: TakeList,
): Promise<JsonObject> {
  const { destination } = request;
  let count = 0;
  return client.stream(request, async ({ body }) => {
    const lists = boundedBody(body, SEND_JOIN_MAX_BYTES);
    try {
      return await readLists(lists, ['state', 'auth_chain'], async (pdus, list) => {
        count += pdus.length;
        if (count > MAX_STATE_EVENTS) throw new FederationError(destination, 'invalid', 'too many events');
        await take(pdus, list as 'state' | 'auth_chain');
      });
    } catch (cause) {
      if (!(cause instanceof SyntaxError)) throw cause;
      throw new FederationError(destination, 'invalid', 'the answer is not as it should be', { cause });
    }
  });
}

export async function sendLeave(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
  event: Pdu,
): Promise<void> {
  await withV1Fallback(destination, (version) =>
    client.requestJson({
      ...userWaits,
      method: 'PUT',
      destination,
      path: path`/_matrix/federation/${version}/send_leave/${roomId}/${eventId}`,
      body: event,
      timeoutMs: JOIN_TIMEOUT,
    }),
  );
}

/** @returns stripped state of the room that was knocked on, as it came: unchecked */
export async function sendKnock(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
  event: Pdu,
): Promise<JsonObject[]> {
  const answer = await client.request({
    ...userWaits,
    method: 'PUT',
    destination,
    path: path`/_matrix/federation/v1/send_knock/${roomId}/${eventId}`,
    body: event,
    timeoutMs: JOIN_TIMEOUT,
    maxBytes: 4 * 1024 * 1024,
  });
  return new AnswerReader(destination, answer).pdus('knock_room_state', 1000);
}

/**
 * Sends an invite for its user's server to sign.
 * https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv2inviteroomideventid
 *
 * @returns the event as the other server signed it: the caller checks that it is the same event
 */
export async function sendInvite(
  client: FederationClient,
  destination: string,
  invite: { roomId: string; eventId: string; roomVersion: string; event: Pdu; inviteRoomState: JsonValue[] },
): Promise<Pdu> {
  const { roomId, eventId, roomVersion, event, inviteRoomState } = invite;
  const send = (version: 'v1' | 'v2') =>
    client.requestJson({
      ...userWaits,
      method: 'PUT',
      destination,
      path: path`/_matrix/federation/${version}/invite/${roomId}/${eventId}`,
      body:
        version === 'v2'
          ? { event, invite_room_state: inviteRoomState, room_version: roomVersion }
          : {
              ...event,
              unsigned: {
                ...(isObject(event.unsigned) ? event.unsigned : {}),
                invite_room_state: inviteRoomState,
              },
            },
      timeoutMs: JOIN_TIMEOUT,
      maxBytes: 256 * 1024,
    });
  // The first version of the endpoint does not say the room version, so it serves rooms of versions 1 and 2 only.
  const answer =
    roomVersion === '1' || roomVersion === '2'
      ? await withV1Fallback(destination, send)
      : asObject(destination, await send('v2'));
  return new AnswerReader(destination, answer).object('event');
}

/** https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid */
export async function exchangeThirdPartyInvite(
  client: FederationClient,
  destination: string,
  roomId: string,
  event: Pdu,
): Promise<void> {
  await client.request({
    ...userWaits,
    method: 'PUT',
    destination,
    path: path`/_matrix/federation/v1/exchange_third_party_invite/${roomId}`,
    body: event,
  });
}

/** Version 1 of these endpoints answers `[200, answer]`. */
async function withV1Fallback(
  destination: string,
  send: (version: 'v1' | 'v2') => Promise<JsonValue>,
): Promise<JsonObject> {
  try {
    return asObject(destination, await send('v2'));
  } catch (error) {
    if (!(error instanceof FederationError && error.isUnknownEndpoint)) throw error;
  }
  const answer = await send('v1');
  return asObject(destination, Array.isArray(answer) ? answer[1] : answer);
}

function asObject(destination: string, answer: JsonValue | undefined): JsonObject {
  if (!isObject(answer)) throw new FederationError(destination, 'invalid', 'the answer is not a JSON object');
  return answer;
}
