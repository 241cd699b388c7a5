import { randomBytes } from 'node:crypto';
import type { JsonObject, JsonValue, Pdu, RoomEvent } from './event.ts';
import { contentHash, essentialText, eventIdOf } from './hashes.ts';
import { serverNameOf } from './identifiers.ts';
import type { RoomVersion } from './room-versions.ts';
import type { SigningKey } from './signing.ts';

/** Reads a PDU whose format has been checked (`checkPdu`), and works out its id. */
export function makeEvent(pdu: Pdu, version: RoomVersion): RoomEvent {
  const eventId =
    version.eventIds === 'server' ? (pdu.event_id as string) : eventIdOf(essentialText(pdu, version), version);
  return viewOf(pdu, eventId, version);
}

/** What a new event is made of; what is missing of the event format is added. */
export interface EventProto {
  readonly room_id?: string;
  readonly sender: string;
  readonly type: string;
  readonly state_key?: string;
  readonly content: JsonObject;
  readonly redacts?: string;
  readonly prev_events: readonly string[];
  readonly auth_events: readonly string[];
  readonly depth: number;
  readonly origin_server_ts: number;
  readonly unsigned?: JsonObject;
}

/** Makes an event: completes it for the room version, hashes and signs it. */
export function buildEvent(
  proto: EventProto,
  { version, key, serverName }: { version: RoomVersion; key: SigningKey; serverName: string },
): RoomEvent {
  const refs = (ids: readonly string[]): JsonValue =>
    // Room versions 1 and 2 repeat a hash beside each id, which nobody has checked for years; it may be left empty.
    version.eventIds === 'server' ? ids.map((id) => [id, {}]) : [...ids];
  const pdu: Pdu = {
    ...proto,
    auth_events: refs(proto.auth_events),
    prev_events: refs(proto.prev_events),
  };
  for (const name of Object.keys(pdu)) if (pdu[name] === undefined) delete pdu[name];
  if (version.eventIds === 'server') {
    pdu.event_id = `$${randomBytes(18).toString('base64url')}:${serverName}`;
    pdu.origin = serverName;
  }
  pdu.hashes = { sha256: contentHash(pdu, version) };
  return signEvent(pdu, { version, key, serverName });
}

/** Signs a PDU that has its hashes, adding to the signatures that it has. */
export function signEvent(
  pdu: Pdu,
  { version, key, serverName }: { version: RoomVersion; key: SigningKey; serverName: string },
): RoomEvent {
  // One text serves as what is signed and what is hashed to the event id.
  const essential = essentialText(pdu, version);
  const before = (pdu.signatures ?? {}) as JsonObject;
  const own = (before[serverName] ?? {}) as JsonObject;
  const signed = { ...pdu, signatures: { ...before, [serverName]: { ...own, [key.keyId]: key.sign(essential) } } };
  const eventId = version.eventIds === 'server' ? (pdu.event_id as string) : eventIdOf(essential, version);
  return viewOf(signed, eventId, version);
}

/** Whether the content hash in the event is that of its contents; if not, the event is only good redacted. */
export function checkContentHash({ pdu, version }: Pick<RoomEvent, 'pdu' | 'version'>): boolean {
  const hashes = pdu.hashes as JsonObject | undefined;
  return typeof hashes?.sha256 === 'string' && hashes.sha256.replace(/=+$/, '') === contentHash(pdu, version);
}

/**
 * Servers whose signatures the event needs (spec: "Validating hashes and signatures on received events"): the sender's, unless it is an invite
 * that a third-party invite stands behind; in room versions 1 and 2 the event id's; since 8 the authorising user's
 * of a restricted join.
 */
export function signingServers({ pdu, version, type, sender, eventId }: RoomEvent): string[] {
  const servers = new Set<string>();
  const content = pdu.content as JsonObject;
  const isMember = type === 'm.room.member';
  const thirdParty = isMember && content.membership === 'invite' && content.third_party_invite !== undefined;
  if (!thirdParty) servers.add(serverNameOf(sender));
  if (version.eventIds === 'server') servers.add(serverNameOf(eventId));
  const authoriser = content.join_authorised_via_users_server;
  if (version.restrictedJoins && isMember && content.membership === 'join' && typeof authoriser === 'string')
    servers.add(serverNameOf(authoriser));
  return [...servers];
}

/** The text that an event's signatures are over. */
export function signedText(pdu: Pdu, version: RoomVersion): string {
  return essentialText(pdu, version);
}

/** The event behind a PDU whose id is known. */
export function viewOf(pdu: Pdu, eventId: string, version: RoomVersion): RoomEvent {
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
  };
}

/** Ids in `auth_events` or `prev_events`; room versions 1 and 2 have pairs of id and hash. */
function idsOf(refs: JsonValue | undefined): string[] {
  if (!Array.isArray(refs)) return [];
  return refs.map((ref) => (Array.isArray(ref) ? (ref[0] as string) : (ref as string)));
}
