import { canonicalJson } from '@trellis/protocol/canonical-json.ts';

/** What an X-Matrix signature covers. */
export interface SignedRequest {
  method: string;
  /** Path and query as they stand on the wire. */
  uri: string;
  origin: string;
  /** Absent only in requests of servers from before v1.3. */
  destination: string | undefined;
  /** Canonical JSON of the body, `undefined` without one. */
  content: string | undefined;
}

export interface XMatrix {
  origin: string;
  destination: string | undefined;
  /** `ed25519:…` */
  key: string;
  sig: string;
}

/** Canonical JSON of the object that is signed; its members stand in their order. */
export function signedText({ method, uri, origin, destination, content }: SignedRequest): string {
  const member = (name: string, value: string) => `"${name}":${canonicalJson(value)}`;
  return `{${[
    ...(content === undefined ? [] : [`"content":${content}`]),
    ...(destination === undefined ? [] : [member('destination', destination)]),
    member('method', method),
    member('origin', origin),
    member('uri', uri),
  ].join(',')}}`;
}

/** As servers of any age read it: one space, lower case, all quoted, no spaces around the commas. */
export function formatXMatrix({ origin, destination, key, sig }: XMatrix): string {
  return `X-Matrix origin="${origin}",destination="${destination}",key="${key}",sig="${sig}"`;
}

const MAX_HEADER = 4096;
/** RFC 9110 5.6.2 token, with colons, and the base64 that older servers leave unquoted. */
const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z:/=[\]-]+/y;
const NAME = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/y;
const SPACE = /[ \t]*/y;

/**
 * The parameters of an `Authorization: X-Matrix` header, `undefined` when it is none or is malformed.
 * https://spec.matrix.org/v1.18/server-server-api/#request-authentication
 */
export function parseXMatrix(header: string): XMatrix | undefined {
  if (header.length > MAX_HEADER) return undefined;
  const scheme = /^X-Matrix +/i.exec(header);
  if (!scheme) return undefined;
  let at = scheme[0].length;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    const match = pattern.exec(header);
    if (match) at = pattern.lastIndex;
    return match;
  };
  const params = new Map<string, string>();
  while (at < header.length) {
    take(SPACE);
    const name = take(NAME)?.[0].toLowerCase();
    take(SPACE);
    if (name === undefined || header[at] !== '=') return undefined;
    at++;
    take(SPACE);
    const quoted = take(QUOTED);
    const value = quoted ? quoted[1]!.replace(/\\(.)/g, '$1') : take(TOKEN)?.[0];
    // A parameter given twice could be read differently by whoever else looks at it.
    if (value === undefined || params.has(name)) return undefined;
    params.set(name, value);
    take(SPACE);
    if (at < header.length && header[at++] !== ',') return undefined;
  }
  const [origin, key, sig] = [
    params.get('origin'),
    params.get('key'),
    params.get('sig') ?? params.get('signature'),
  ];
  if (origin === undefined || key === undefined || sig === undefined) return undefined;
  return { origin, destination: params.get('destination'), key, sig };
}
