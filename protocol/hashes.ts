import { hash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import type { Pdu } from './event.ts';
import { redact } from './redaction.ts';
import type { RoomVersion } from './room-versions.ts';

/** SHA-256 of an event's whole contents, unpadded Base64 (spec: "Calculating the content hash for an event"). */
export function contentHash(pdu: Pdu, version: RoomVersion): string {
  const { unsigned: _unsigned, signatures: _signatures, hashes: _hashes, ...rest } = pdu;
  return unpadded(hash('sha256', canonicalJson(rest, { lax: !version.strictCanonicalJson }), 'base64'));
}

/**
 * The text that an event's signatures and, since room version 3, its id are over: redacted, canonical, without
 * `signatures` and `unsigned` (spec: "Calculating the reference hash for an event", "Signing Events").
 */
export function essentialText(pdu: Pdu, version: RoomVersion): string {
  const { signatures: _signatures, ...rest } = redact(pdu, version);
  return canonicalJson(rest, { lax: !version.strictCanonicalJson });
}

/** The event id of room versions since 3, from `essentialText`. */
export function eventIdOf(essential: string, version: RoomVersion): string {
  const encoding = version.eventIds === 'hash' ? 'base64' : 'base64url';
  return `$${unpadded(hash('sha256', essential, encoding))}`;
}

export function referenceHash(pdu: Pdu, version: RoomVersion): string {
  return eventIdOf(essentialText(pdu, version), version).slice(1);
}

function unpadded(text: string): string {
  return text.replace(/=+$/, '');
}
