import type { JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { AnswerReader, isObject } from './answers.ts';
import { boundedBody } from './bounded-body.ts';
import { type FederationClient, path } from './client.ts';
import { FederationError } from './federation-error.ts';
import { readLists } from './list-stream.ts';

const MAX_STATE_EVENTS = 1_000_000;
const STATE_TIMEOUT = 5 * 60_000;
const STATE_MAX_BYTES = 256 * 1024 * 1024;
const MAX_BATCH = 1000;

/**
 * Sends a transaction. PDUs that the other side refuses stand in the answer with their error: it has seen them, and
 * they are not sent again.
 * https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv1sendtxnid
 */
export async function sendTransaction(
  client: FederationClient,
  destination: string,
  txnId: string,
  transaction: {
    originServerTs: number;
    pdus: readonly Pdu[];
    edus: readonly JsonValue[];
    signal?: AbortSignal;
  },
): Promise<{ refused: Map<string, string> }> {
  const answer = await client.request({
    method: 'PUT',
    destination,
    path: path`/_matrix/federation/v1/send/${txnId}`,
    body: {
      origin: client.serverName,
      origin_server_ts: transaction.originServerTs,
      pdus: [...transaction.pdus],
      edus: [...transaction.edus],
    },
    timeoutMs: 60_000,
    maxBytes: 1024 * 1024,
    signal: transaction.signal,
  });
  const refused = new Map<string, string>();
  const results = new AnswerReader(destination, answer).optionalObject('pdus');
  for (const [eventId, result] of Object.entries(results).slice(0, 100))
    if (isObject(result) && typeof result.error === 'string') refused.set(eventId, result.error);
  return { refused };
}

export async function getEvent(client: FederationClient, destination: string, eventId: string): Promise<Pdu> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/event/${eventId}`,
    timeoutMs: 20_000,
    maxBytes: 1024 * 1024,
  });
  const [pdu] = new AnswerReader(destination, answer).pdus('pdus', 10);
  if (!pdu) throw new FederationError(destination, 'invalid', 'the answer has no event');
  return pdu;
}

/** Room state before an event, with its auth chains: handed on as it comes. */
export async function getState(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
  take: (pdus: readonly Pdu[]) => Promise<void>,
): Promise<void> {
  let count = 0;
  await client.stream(
    {
      method: 'GET',
      destination,
      path: path`/_matrix/federation/v1/state/${roomId}`,
      query: { event_id: eventId },
      timeoutMs: STATE_TIMEOUT,
    },
    ({ body }) =>
      readLists(boundedBody(body, STATE_MAX_BYTES), ['pdus', 'auth_chain'], async (pdus) => {
        count += pdus.length;
        if (count > MAX_STATE_EVENTS) throw new FederationError(destination, 'invalid', 'too many events');
        await take(pdus);
      }),
  );
}

export async function getStateIds(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
): Promise<{ stateIds: string[]; authChainIds: string[] }> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/state_ids/${roomId}`,
    query: { event_id: eventId },
    timeoutMs: STATE_TIMEOUT,
    maxBytes: STATE_MAX_BYTES,
  });
  const read = new AnswerReader(destination, answer);
  return {
    stateIds: read.strings('pdu_ids', MAX_STATE_EVENTS),
    authChainIds: read.strings('auth_chain_ids', MAX_STATE_EVENTS),
  };
}

export async function getEventAuth(
  client: FederationClient,
  destination: string,
  roomId: string,
  eventId: string,
): Promise<Pdu[]> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/event_auth/${roomId}/${eventId}`,
    timeoutMs: STATE_TIMEOUT,
    maxBytes: STATE_MAX_BYTES,
  });
  return new AnswerReader(destination, answer).pdus('auth_chain', MAX_STATE_EVENTS);
}

/** Events before (and with) `from`, newest first. */
export async function backfill(
  client: FederationClient,
  destination: string,
  roomId: string,
  from: readonly string[],
  limit: number,
): Promise<Pdu[]> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/backfill/${roomId}`,
    query: { v: from, limit },
    timeoutMs: STATE_TIMEOUT,
  });
  return new AnswerReader(destination, answer).pdus('pdus', MAX_BATCH);
}

/** https://spec.matrix.org/v1.18/server-server-api/#post_matrixfederationv1get_missing_eventsroomid */
export async function getMissingEvents(
  client: FederationClient,
  destination: string,
  roomId: string,
  query: { earliest: readonly string[]; latest: readonly string[]; limit: number; minDepth: number },
): Promise<Pdu[]> {
  const answer = await client.request({
    method: 'POST',
    destination,
    path: path`/_matrix/federation/v1/get_missing_events/${roomId}`,
    body: {
      earliest_events: [...query.earliest],
      latest_events: [...query.latest],
      limit: query.limit,
      min_depth: query.minDepth,
    },
    timeoutMs: 30_000,
  });
  return new AnswerReader(destination, answer).pdus('events', MAX_BATCH);
}

export async function timestampToEvent(
  client: FederationClient,
  destination: string,
  roomId: string,
  ts: number,
  dir: 'f' | 'b',
): Promise<{ eventId: string; originServerTs: number }> {
  const answer = await client.request({
    method: 'GET',
    destination,
    path: path`/_matrix/federation/v1/timestamp_to_event/${roomId}`,
    query: { ts, dir },
    timeoutMs: 20_000,
    maxBytes: 64 * 1024,
  });
  const read = new AnswerReader(destination, answer);
  return { eventId: read.string('event_id'), originServerTs: read.number('origin_server_ts') };
}
