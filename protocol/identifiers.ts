import { Buffer } from 'node:buffer';
import { isIPv4, isIPv6 } from 'node:net';

/**
 * Identifiers and their grammars (spec: appendices, "Identifier Grammar"). Lengths are in bytes of UTF-8. Of others'
 * identifiers the historical grammars are asked, which servers must accept; strict ones serve for what is new.
 */
const MAX_ID_BYTES = 255;

/** `&localpart:server` taken apart. */
export interface Identifier {
  readonly localpart: string;
  readonly serverName: string;
}

/** Splits at the first colon: a server name may hold more of them. */
function parseIdentifier(id: string, sigil: string): Identifier | undefined {
  if (id[0] !== sigil || !isOfSize(id) || !isText(id)) return undefined;
  const colon = id.indexOf(':');
  const serverName = serverNameOf(id);
  return colon > 0 && isServerName(serverName) ? { localpart: id.slice(1, colon), serverName } : undefined;
}

/** A user id of the current or the historical grammar, which has any character and even empty localparts. */
export function parseUserId(id: string): Identifier | undefined {
  return parseIdentifier(id, '@');
}

/** The grammar for localparts of new users. */
export function isLocalpart(localpart: string): boolean {
  return /^[a-z0-9._=/+-]+$/.test(localpart);
}

export function parseRoomAlias(alias: string): Identifier | undefined {
  const parsed = parseIdentifier(alias, '#');
  return parsed?.localpart === '' ? undefined : parsed;
}

export function isRoomAlias(alias: string): boolean {
  return parseRoomAlias(alias) !== undefined;
}

/** `!opaque:server`, or since room version 12 `!` and the create event's hash. */
export function isRoomId(id: string): boolean {
  return isHashRoomId(id) || parseIdentifier(id, '!') !== undefined;
}

/** A room id of room version 12 or later. */
export function isHashRoomId(id: string): boolean {
  return /^![A-Za-z0-9_-]{43}$/.test(id);
}

/** `$opaque:server` in room versions 1 and 2, `$` and a hash since. To be taken as opaque. */
export function isEventId(id: string): boolean {
  return id[0] === '$' && id.length > 1 && isOfSize(id) && isText(id);
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
  if (host[0] === '[' && !isIPv6(host.slice(1, -1))) return undefined;
  const port = match[2] === undefined ? undefined : Number(match[2]);
  return port !== undefined && port > 65_535 ? undefined : { host, port };
}

export function isServerName(name: string): boolean {
  return parseServerName(name) !== undefined;
}

/** Whether the host of a server name is an address and not a name. */
export function isIpLiteral(host: string): boolean {
  return host[0] === '[' ? isIPv6(host.slice(1, -1)) : isIPv4(host);
}

/** The grammar of opaque identifiers, for what has no more particular one. */
export function isOpaqueId(id: string): boolean {
  return /^[0-9A-Za-z._~-]{1,255}$/.test(id);
}

export interface MxcUri {
  readonly serverName: string;
  readonly mediaId: string;
}

/** `mxc://server/media`. The media id can do no harm in a path (client-server API, "Security considerations"). */
export function parseMxcUri(uri: string): MxcUri | undefined {
  const match = /^mxc:\/\/([^/]+)\/([A-Za-z0-9_-]{1,255})$/.exec(uri);
  if (!match || !isServerName(match[1]!)) return undefined;
  return { serverName: match[1]!, mediaId: match[2]! };
}

function isOfSize(id: string): boolean {
  // A UTF-16 unit is at most three bytes, so short ones need no counting.
  return (
    id.length <= MAX_ID_BYTES / 3 || (id.length <= MAX_ID_BYTES && Buffer.byteLength(id) <= MAX_ID_BYTES)
  );
}

/** Unicode without NUL, which neither identifiers nor PostgreSQL hold. */
function isText(id: string): boolean {
  return !id.includes('\0') && id.isWellFormed();
}
