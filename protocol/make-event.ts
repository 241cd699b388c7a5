import { randomBytes } from 'node:crypto';
import { decodeBase64, encodeBase64 } from './base64.ts';
import type { JsonObject, JsonValue, Pdu, RoomEvent } from './event.ts';
import { contentHash, essentialText, eventIdOf } from './hashes.ts';
import { serverNameOf } from './identifiers.ts';
import type { RoomVersion } from './room-versions.ts';
import { type SigningKey, withSignature } from './signing.ts';

/** Reads a PDU whose format has been checked (`checkPdu`), and works out its id. */
export function makeEvent(pdu: Pdu, version: RoomVersion): RoomEvent {
  if (version.eventIds === 'server') return viewOf(pdu, pdu.event_id as string, version);
  const essential = essentialText(pdu, version);
  return viewOf(pdu, eventIdOf(essential, version), version, essential);
}

/** What a new event is made of; what is missing of the event format is added. */
export interface EventProto {
  readonly room_id?: string;
  readonly sender: string;
  readonly type: string;
  readonly state_key?: string;
  readonly content: JsonObject;
  readonly redacts?: string;
  /** For how long the event is sticky (MSC4354). */
  readonly msc4354_sticky?: { readonly duration_ms: number };
  readonly prev_events: readonly string[];
  readonly auth_events: readonly string[];
  readonly depth: number;
  readonly origin_server_ts: number;
  readonly unsigned?: JsonObject;
}

export interface Signer {
  readonly version: RoomVersion;
  readonly key: SigningKey;
  readonly serverName: string;
}

/**
 * Makes an event: completes it for the room version, hashes and signs it. The caller answers for what it signs: give
 * members that were looked at one by one, never another server's object as it came.
 *
 * @param referenceHashOf of the events referred to, which room versions 1 and 2 state beside their ids; servers have
 *   not checked them for years, and without it they are empty
 */
export function buildEvent(
  proto: EventProto,
  signer: Signer & { readonly referenceHashOf?: (eventId: string) => string | undefined },
): RoomEvent {
  const { version, serverName, referenceHashOf } = signer;
  const pdu: Pdu = {
    type: proto.type,
    sender: proto.sender,
    content: proto.content,
    depth: proto.depth,
    origin_server_ts: proto.origin_server_ts,
    prev_events: [...proto.prev_events],
    auth_events: [...proto.auth_events],
  };
  if (proto.room_id !== undefined) pdu.room_id = proto.room_id;
  if (proto.state_key !== undefined) pdu.state_key = proto.state_key;
  if (proto.redacts !== undefined) pdu.redacts = proto.redacts;
  if (proto.msc4354_sticky !== undefined) pdu.msc4354_sticky = { ...proto.msc4354_sticky };
  if (proto.unsigned !== undefined) pdu.unsigned = proto.unsigned;
  if (version.eventIds === 'server') {
    const pairs = (ids: readonly string[]) => ids.map((id) => [id, { sha256: referenceHashOf?.(id) ?? '' }]);
    pdu.prev_events = pairs(proto.prev_events);
    pdu.auth_events = pairs(proto.auth_events);
    pdu.event_id = `$${randomBytes(18).toString('base64url')}:${serverName}`;
    pdu.origin = serverName;
  }
  pdu.hashes = { sha256: contentHash(pdu, version) };
  return signEvent(pdu, signer);
}

/** Signs a PDU that has its hashes, adding to the signatures that it has. */
export function signEvent(pdu: Pdu, { version, key, serverName }: Signer): RoomEvent {
  // One text serves as what is signed and what is hashed to the event id.
  const essential = essentialText(pdu, version);
  const signed = withSignature(pdu, serverName, key.keyId, key.sign(essential));
  const eventId = version.eventIds === 'server' ? (pdu.event_id as string) : eventIdOf(essential, version);
  return viewOf(signed, eventId, version);
}

/** Whether the content hash in the event is that of its contents; if not, the event is only good redacted. */
export function checkContentHash({ pdu, version }: Pick<RoomEvent, 'pdu' | 'version'>): boolean {
  const stated = (pdu.hashes as JsonObject | undefined)?.sha256;
  if (typeof stated !== 'string') return false;
  const bytes = decodeBase64(stated);
  return bytes !== undefined && encodeBase64(bytes) === contentHash(pdu, version);
}

/**
 * Servers that must have signed the event (spec: server-server API, "Validating hashes and signatures on received
 * events"): the sender's, unless it is an invite for which a third-party invite stands; in room versions 1 and 2 the
 * event id's; since 8 that of the user who authorised a restricted join (auth rules, "m.room.member").
 */
export function signingServers({ version, type, sender, eventId, content }: RoomEvent): string[] {
  const servers = new Set<string>();
  const isMember = type === 'm.room.member';
  const isThirdParty =
    isMember && content.membership === 'invite' && content.third_party_invite !== undefined;
  if (!isThirdParty) servers.add(serverNameOf(sender));
  if (version.eventIds === 'server') servers.add(serverNameOf(eventId));
  const authoriser = content.join_authorised_via_users_server;
  if (isMember && version.restrictedJoins && typeof authoriser === 'string')
    servers.add(serverNameOf(authoriser));
  return [...servers];
}

/** The text that an event's signatures are over. */
export function signedText({ pdu, version, essential }: RoomEvent): string {
  return essential ?? essentialText(pdu, version);
}

/** The event behind a PDU whose id is known. */
export function viewOf(pdu: Pdu, eventId: string, version: RoomVersion, essential?: string): RoomEvent {
  const content = pdu.content as JsonObject;
  const redacts = version.redactsInContent ? content.redacts : pdu.redacts;
  // Since room version 12 the create event bears no room id: its own id is the room's.
  const isRoot = version.roomIdIsCreateHash && pdu.type === 'm.room.create' && pdu.room_id === undefined;
  return {
    version,
    eventId,
    roomId: isRoot ? `!${eventId.slice(1)}` : (pdu.room_id as string),
    type: pdu.type as string,
    sender: pdu.sender as string,
    stateKey: typeof pdu.state_key === 'string' ? pdu.state_key : undefined,
    content,
    originServerTs: pdu.origin_server_ts as number,
    depth: pdu.depth as number,
    authEvents: idsOf(pdu.auth_events),
    prevEvents: idsOf(pdu.prev_events),
    redacts: typeof redacts === 'string' ? redacts : undefined,
    pdu,
    essential,
  };
}

/** Ids in `auth_events` or `prev_events`; room versions 1 and 2 have pairs of id and hash. */
function idsOf(refs: JsonValue | undefined): string[] {
  if (!Array.isArray(refs)) return [];
  return refs.map((ref) => (Array.isArray(ref) ? (ref[0] as string) : (ref as string)));
}
