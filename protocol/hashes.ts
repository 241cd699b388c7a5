import { hash } from 'node:crypto';
import { canonicalJson } from './canonical-json.ts';
import type { Pdu } from './event.ts';
import { redact } from './redaction.ts';
import type { RoomVersion } from './room-versions.ts';

/** Canonical JSON as strict as the room version has it. */
export function canonicalEvent(pdu: object, version: RoomVersion): string {
  return canonicalJson(pdu, { lax: !version.strictCanonicalJson });
}

/** SHA-256 of an event's whole contents, unpadded Base64 (spec: "Calculating the content hash for an event"). */
export function contentHash(pdu: Pdu, version: RoomVersion): string {
  const hashed = { ...pdu, unsigned: undefined, signatures: undefined, hashes: undefined };
  return sha256(canonicalEvent(hashed, version), 'base64');
}

/**
 * The text that an event's signatures and, since room version 3, its id are over: redacted, canonical, without
 * `signatures` and `unsigned` (spec: "Calculating the reference hash for an event", "Signing Events").
 */
export function essentialText(pdu: Pdu, version: RoomVersion): string {
  // `unsigned` does not outlive the redaction.
  return canonicalEvent({ ...redact(pdu, version), signatures: undefined }, version);
}

/** The event id of room versions since 3, from `essentialText`. */
export function eventIdOf(essential: string, version: RoomVersion): string {
  return `$${hashOfEssential(essential, version)}`;
}

/** What events of room versions 1 and 2 say of those before them, and what event ids are made of since. */
export function referenceHash(pdu: Pdu, version: RoomVersion): string {
  return hashOfEssential(essentialText(pdu, version), version);
}

function hashOfEssential(essential: string, version: RoomVersion): string {
  return sha256(essential, version.eventIds === 'url-safe-hash' ? 'base64url' : 'base64');
}

function sha256(text: string, encoding: 'base64' | 'base64url'): string {
  const digest = hash('sha256', text, encoding);
  // 32 bytes are padded by one sign.
  return encoding === 'base64' ? digest.slice(0, 43) : digest;
}
