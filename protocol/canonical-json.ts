import { badJson } from './errors.ts';

/** Strings of object keys as JSON, since events use the same few keys over and over. Bounded by its fixed size. */
const quotedKeys = new Map<string, string>();
const MAX_QUOTED_KEYS = 2048;

/**
 * Canonical JSON (spec: appendices, "Canonical JSON"): keys sorted by code point, no white space, integers only.
 * Throws M_BAD_JSON for numbers that it forbids and for strings that are no Unicode text. Members that are
 * `undefined` are left out.
 *
 * @param options.lax write other numbers as `JSON.stringify` does: events of room versions 1 to 5 may hold them
 */
export function canonicalJson(value: unknown, options?: { lax?: boolean }): string {
  return encode(value, options?.lax === true);
}

function encode(value: unknown, lax: boolean): string {
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'number':
      if (Number.isSafeInteger(value)) return value === 0 ? '0' : String(value);
      if (lax && Number.isFinite(value)) return JSON.stringify(value);
      throw badJson(`${value} is not an integer within ±(2^53−1)`);
    case 'boolean':
      return value ? 'true' : 'false';
    case 'object':
      if (value === null) return 'null';
      if (Array.isArray(value)) return encodeArray(value, lax);
      return encodeObject(value as Record<string, unknown>, lax);
    default:
      throw badJson(`${typeof value} is not JSON`);
  }
}

function encodeArray(items: readonly unknown[], lax: boolean): string {
  let json = '[';
  for (let i = 0; i < items.length; i++) {
    if (i > 0) json += ',';
    json += encode(items[i], lax);
  }
  return `${json}]`;
}

function encodeObject(object: Record<string, unknown>, lax: boolean): string {
  let json = '';
  for (const key of sortedKeys(object)) {
    const member = object[key];
    if (member === undefined) continue;
    json += `${json === '' ? '{' : ','}${quoteKey(key)}:${encode(member, lax)}`;
  }
  return json === '' ? '{}' : `${json}}`;
}

function sortedKeys(object: Record<string, unknown>): string[] {
  const keys = Object.keys(object);
  if (keys.length > 12) return keys.sort(byCodePoint);
  // Insertion sort: objects are small, and their keys mostly sorted already.
  for (let i = 1; i < keys.length; i++) {
    const key = keys[i]!;
    let j = i - 1;
    while (j >= 0 && byCodePoint(keys[j]!, key) > 0) {
      keys[j + 1] = keys[j]!;
      j--;
    }
    keys[j + 1] = key;
  }
  return keys;
}

/** JavaScript compares UTF-16 units, which puts surrogates (beyond U+FFFF) before U+E000 to U+FFFF. */
function byCodePoint(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    if (x < 0xd800 || y < 0xd800) return x - y;
    const xIsSurrogate = x <= 0xdfff;
    return xIsSurrogate === y <= 0xdfff ? x - y : xIsSurrogate ? 1 : -1;
  }
  return a.length - b.length;
}

function quoteKey(key: string): string {
  let quoted = quotedKeys.get(key);
  if (quoted === undefined) {
    quoted = quote(key);
    if (quotedKeys.size < MAX_QUOTED_KEYS && key.length <= 64) quotedKeys.set(key, quoted);
  }
  return quoted;
}

function quote(text: string): string {
  if (!text.isWellFormed()) throw badJson('A string holds a lone surrogate');
  return JSON.stringify(text);
}
