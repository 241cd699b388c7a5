import { setImmediate } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonValue, Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { checkContentHash, makeEvent, signingServers } from '@trellis/protocol/make-event.ts';
import { redact } from '@trellis/protocol/redaction.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';

/** Verifies the signatures that events need. Federation's key ring does it. */
export interface EventVerifier {
  /** An error for each event id, or `undefined` where all signatures are right. */
  verifyEventSignatures(events: readonly RoomEvent[]): Promise<Map<string, Error | undefined>>;
  /**
   * Events of the server are about to come: what it takes to verify them may be fetched meanwhile, once the server
   * `talks`.
   */
  expect?(server: string, talks: Promise<unknown>): Promise<void>;
}

/** What became of a PDU: an event that is worth a look at, or an error. */
export interface Incoming {
  /** `undefined` where the PDU is too broken to have an id. */
  readonly eventId: string | undefined;
  readonly event?: RoomEvent;
  readonly error?: string;
}

/** Signatures verified at a time: bounds the keys that are asked for together. */
const BATCH = 500;
/** Events hashed before others have their turn. */
const A_TURN = 100;

/**
 * Steps 1 to 3 of the checks on a received PDU (spec: server-server API, "Checks performed on receipt of a PDU"): the
 * format and size that the room version asks for, the signatures, and the content hash. Where the hash is wrong the
 * event goes on redacted. `unsigned` is left out: nobody answers for it.
 *
 * @returns the outcomes, in the order of the PDUs
 */
export async function checkIncoming(
  pdus: readonly Pdu[],
  version: RoomVersion,
  verifier: EventVerifier,
): Promise<Incoming[]> {
  return verifyIncoming(await readPdus(pdus, version), verifier);
}

/** Step 1: the events, as far as their format and size are right. None is given twice. */
export function readPdus(pdus: readonly Pdu[], version: RoomVersion): Promise<Incoming[]> {
  const ids = new Set<string>();
  return mapInTurns(pdus, (pdu): Incoming => {
    const incoming = checkFormat(pdu, version);
    // What the verifier says of an id must be of this very event.
    if (incoming.event && ids.has(incoming.event.eventId))
      return { eventId: incoming.eventId, error: 'the event is given twice' };
    if (incoming.event) ids.add(incoming.event.eventId);
    return incoming;
  });
}

/** Steps 2 and 3, on what `readPdus` has made of PDUs. */
export async function verifyIncoming(
  checked: readonly Incoming[],
  verifier: EventVerifier,
): Promise<Incoming[]> {
  const events = checked.flatMap(({ event }) => event ?? []);
  const errors = new Map<RoomEvent, Error>();
  for (let i = 0; i < events.length; i += BATCH) {
    const batch = events.slice(i, i + BATCH);
    const verified = await verifier.verifyEventSignatures(batch);
    for (const event of batch) {
      // An event that the verifier says nothing about has not been verified.
      const error = verified.has(event.eventId) ? verified.get(event.eventId) : new Error('not verified');
      if (error) errors.set(event, error);
    }
  }
  const hashed = await mapInTurns(checked, (incoming) => {
    const error = incoming.event && errors.get(incoming.event);
    if (error) return { eventId: incoming.eventId, error: error.message };
    return incoming.event ? { ...incoming, event: withRightHash(incoming.event) } : incoming;
  });
  return verifyAnew(checked, hashed, verifier);
}

/**
 * An invite by third-party invite need not be signed by its sender's server, and before room version 11 a redaction
 * takes away what made it one: with a wrong hash, anybody could make it an invite in another's name. So what an event
 * needs redacted that it did not need before is verified once more.
 */
async function verifyAnew(
  before: readonly Incoming[],
  hashed: readonly Incoming[],
  verifier: EventVerifier,
): Promise<Incoming[]> {
  const changed = hashed.flatMap(({ event }, i) =>
    event && event !== before[i]!.event && needsMore(event, before[i]!.event!) ? [event] : [],
  );
  if (changed.length === 0) return [...hashed];
  const verified = await verifier.verifyEventSignatures(changed);
  const refused = new Set(changed.filter(({ eventId }) => !verified.has(eventId) || verified.get(eventId)));
  return hashed.map((incoming) =>
    incoming.event && refused.has(incoming.event)
      ? { eventId: incoming.eventId, error: 'the content hash is wrong, and its sender has not signed it' }
      : incoming,
  );
}

function needsMore(redacted: RoomEvent, event: RoomEvent): boolean {
  const before = new Set(signingServers(event));
  return signingServers(redacted).some((server) => !before.has(server));
}

/** The id of a PDU whose format nobody has looked at; `undefined` when it can't have one. */
export function idOfPdu(pdu: JsonValue | undefined, version: RoomVersion): string | undefined {
  try {
    const { eventId } = makeEvent(pdu as Pdu, version);
    return typeof eventId === 'string' ? eventId : undefined;
  } catch {
    return undefined;
  }
}

/** As `map`, with a pause now and then: hashing the events of a large room takes seconds, and others want to be served. */
async function mapInTurns<T, R>(items: readonly T[], map: (item: T) => R): Promise<R[]> {
  const results: R[] = [];
  for (const [index, item] of items.entries()) {
    if (index > 0 && index % A_TURN === 0) await setImmediate();
    results.push(map(item));
  }
  return results;
}

function checkFormat({ unsigned: _unsigned, ...pdu }: Pdu, version: RoomVersion): Incoming {
  try {
    checkPdu(pdu, version, { others: true });
    const event = makeEvent(pdu, version);
    return { eventId: event.eventId, event };
  } catch (error) {
    if (!(error instanceof MatrixError)) throw error;
    return { eventId: idOfPdu(pdu, version), error: error.message };
  }
}

function withRightHash(event: RoomEvent): RoomEvent {
  return checkContentHash(event) ? event : makeEvent(redact(event.pdu, event.version), event.version);
}
