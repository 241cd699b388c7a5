import { Buffer } from 'node:buffer';
import { isIP, isIPv4, isIPv6 } from 'node:net';

/**
 * Identifiers and their grammars (spec: appendices, "Common Identifier Format"). Lengths are in bytes of UTF-8.
 * What is checked of others' identifiers is the historical grammar: servers must accept it.
 */
const MAX_ID_BYTES = 255;

export interface UserId {
  readonly localpart: string;
  readonly serverName: string;
}

function fits(id: string): boolean {
  // A UTF-16 unit is at most three bytes, so short ones need no counting.
  return id.length <= 85 || (id.length <= MAX_ID_BYTES && Buffer.byteLength(id) <= MAX_ID_BYTES);
}

/** Splits `<sigil>localpart:server`; the server name begins after the first colon. */
function split(id: string, sigil: string): [localpart: string, serverName: string] | undefined {
  if (typeof id !== 'string' || id[0] !== sigil || !fits(id)) return undefined;
  const colon = id.indexOf(':');
  if (colon < 1) return undefined;
  const serverName = id.slice(colon + 1);
  return isServerName(serverName) ? [id.slice(1, colon), serverName] : undefined;
}

/** A user id of either grammar; `undefined` when it is none. An empty localpart is historical, too. */
export function parseUserId(id: string): UserId | undefined {
  const parts = split(id, '@');
  if (!parts || parts[0].includes('\0') || !parts[0].isWellFormed()) return undefined;
  return { localpart: parts[0], serverName: parts[1] };
}

/** The grammar for new users' localparts. */
export function isLocalpart(localpart: string): boolean {
  return /^[a-z0-9._=/+-]+$/.test(localpart);
}

/** What stands after the first colon: the server of a user, alias, room (before version 12) or event (1, 2). */
export function serverNameOf(id: string): string {
  return id.slice(id.indexOf(':') + 1);
}

export interface ServerName {
  readonly host: string;
  readonly port: number | undefined;
}

/** A server name in its parts; an IPv6 literal keeps its brackets. */
export function parseServerName(name: string): ServerName | undefined {
  const match = /^(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,255})(?::([0-9]{1,5}))?$/.exec(name);
  if (!match) return undefined;
  const host = match[1]!;
  if (host.startsWith('[') && !isIPv6(host.slice(1, -1))) return undefined;
  const port = match[2] === undefined ? undefined : Number(match[2]);
  if (port !== undefined && port > 65535) return undefined;
  return { host, port };
}

const knownServerNames = new Set<string>();

export function isServerName(name: string): boolean {
  if (knownServerNames.has(name)) return true;
  if (name.length > 230 || parseServerName(name) === undefined) return false;
  if (knownServerNames.size > 5000) knownServerNames.clear();
  knownServerNames.add(name);
  return true;
}

/** Whether the host of a server name is an address and not a name. */
export function isIpLiteral(host: string): boolean {
  return host.startsWith('[') ? isIPv6(host.slice(1, -1)) : isIPv4(host) && isIP(host) === 4;
}

/** `!opaque:server`, or since room version 12 `!` and the create event's hash. */
export function isRoomId(id: string): boolean {
  if (typeof id !== 'string' || id[0] !== '!' || id.length < 2 || !fits(id)) return false;
  if (/^![A-Za-z0-9_-]{43}$/.test(id)) return true;
  const colon = id.indexOf(':');
  return colon > 0 && isServerName(id.slice(colon + 1)) && !id.includes('\0');
}

export interface RoomAlias {
  readonly localpart: string;
  readonly serverName: string;
}

export function parseRoomAlias(alias: string): RoomAlias | undefined {
  const parts = split(alias, '#');
  if (!parts || parts[0].includes('\0') || !parts[0].isWellFormed() || parts[0] === '') return undefined;
  return { localpart: parts[0], serverName: parts[1] };
}

export function isRoomAlias(alias: string): boolean {
  return parseRoomAlias(alias) !== undefined;
}

/** `$opaque:server` in room versions 1 and 2, `$` and a hash since. */
export function isEventId(id: string): boolean {
  return typeof id === 'string' && id[0] === '$' && id.length > 1 && fits(id) && !id.includes('\0');
}

/** The spec's opaque identifiers: device ids, session ids, transaction ids… */
export function isOpaqueId(id: string): boolean {
  return /^[0-9A-Za-z._~-]{1,255}$/.test(id);
}

export interface MxcUri {
  readonly serverName: string;
  readonly mediaId: string;
}

/** `mxc://server/media`, with a media id that can do no harm in a path. */
export function parseMxcUri(uri: string): MxcUri | undefined {
  const match = /^mxc:\/\/([^/]+)\/([A-Za-z0-9_-]{1,255})$/.exec(uri);
  if (!match || !isServerName(match[1]!)) return undefined;
  return { serverName: match[1]!, mediaId: match[2]! };
}
