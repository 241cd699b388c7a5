import { badJson } from './errors.ts';

/** Objects and arrays inside each other at the most: far beyond real use, far within what the stack bears. */
export const MAX_DEPTH = 500;

interface Mode {
  readonly lax: boolean;
}
const STRICT: Mode = { lax: false };

/**
 * Canonical JSON (spec: appendices, "Canonical JSON"): keys sorted by code point, no white space, integers only.
 * Throws M_BAD_JSON for numbers that it forbids, for strings that are no Unicode text (lone surrogates have no
 * UTF-8) and beyond `MAX_DEPTH`. Members that are `undefined` are left out.
 *
 * @param mode.lax write other numbers as `JSON.stringify` does: events of room versions 1 to 5 may hold them
 */
export function canonicalJson(value: unknown, mode: Mode = STRICT): string {
  // The native encoder is several times faster than any of ours, once it is given members in the right order.
  const ordered = inOrder(value, mode, 0);
  if (ordered === AWKWARD) return encode(value, mode, 0);
  const json = JSON.stringify(ordered);
  // It escapes lone surrogates and nothing else this way, but for a backslash that happens to stand before "ud".
  return json.includes('\\ud') ? encode(value, mode, 0) : json;
}

/** Stands for an object whose keys JavaScript would not keep in the order of their making. */
const AWKWARD = Symbol('awkward');

/** The value itself when all of its members are in order, else a copy in which they are. */
function inOrder(value: unknown, mode: Mode, depth: number): unknown {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return value;
    case 'number':
      return checkNumber(value, mode);
    case 'object':
      if (value === null) return null;
      checkDepth(depth);
      return Array.isArray(value) ? arrayInOrder(value, mode, depth) : objectInOrder(value, mode, depth);
    default:
      throw badJson(`${typeof value} is not JSON`);
  }
}

function arrayInOrder(items: readonly unknown[], mode: Mode, depth: number): unknown {
  let copy: unknown[] | undefined;
  for (let i = 0; i < items.length; i++) {
    const item = items[i];
    if (typeof item === 'string') continue;
    const ordered = inOrder(item, mode, depth + 1);
    if (ordered === AWKWARD) return AWKWARD;
    if (ordered === item) continue;
    copy ??= [...items];
    copy[i] = ordered;
  }
  return copy ?? items;
}

function objectInOrder(object: object, mode: Mode, depth: number): unknown {
  const members = object as Record<string, unknown>;
  const keys = Object.keys(object);
  let changed = sortKeys(keys);
  const ordered: unknown[] = [];
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i]!;
    // Assigning `__proto__` makes no member.
    if (isIndex(key) || key === '__proto__') return AWKWARD;
    const member = members[key];
    const item = member === undefined ? undefined : inOrder(member, mode, depth + 1);
    if (item === AWKWARD) return AWKWARD;
    if (item !== member) changed = true;
    ordered.push(item);
  }
  if (!changed) return object;
  const copy: Record<string, unknown> = {};
  for (let i = 0; i < keys.length; i++) copy[keys[i]!] = ordered[i];
  return copy;
}

/** Keys like array indices come first in every object. IP addresses, which servers are named by, are no such keys. */
function isIndex(key: string): boolean {
  const first = key.charCodeAt(0);
  if (first < 0x30 || first > 0x39) return false;
  const last = key.charCodeAt(key.length - 1);
  return last >= 0x30 && last <= 0x39 && /^\d+$/.test(key);
}

/** The plain encoder, right for everything. */
function encode(value: unknown, mode: Mode, depth: number): string {
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'object':
      if (value === null) return 'null';
      checkDepth(depth);
      return Array.isArray(value)
        ? `[${value.map((item) => encode(item, mode, depth + 1)).join(',')}]`
        : encodeObject(value as Record<string, unknown>, mode, depth);
    case 'number':
      return JSON.stringify(checkNumber(value, mode));
    case 'boolean':
      return value ? 'true' : 'false';
    default:
      throw badJson(`${typeof value} is not JSON`);
  }
}

function encodeObject(object: Record<string, unknown>, mode: Mode, depth: number): string {
  const keys = Object.keys(object);
  sortKeys(keys);
  const members: string[] = [];
  for (const key of keys) {
    const member = object[key];
    if (member !== undefined) members.push(`${quote(key)}:${encode(member, mode, depth + 1)}`);
  }
  return `{${members.join(',')}}`;
}

function quote(text: string): string {
  if (!text.isWellFormed()) throw badJson('A string holds a lone surrogate');
  return JSON.stringify(text);
}

function checkNumber(value: number, { lax }: Mode): number {
  if (Number.isSafeInteger(value) || (lax && Number.isFinite(value))) return value;
  throw badJson(`${value} is not an integer within ±(2^53−1)`);
}

function checkDepth(depth: number): void {
  if (depth >= MAX_DEPTH) throw badJson(`JSON nests deeper than ${MAX_DEPTH} levels`);
}

/** Sorts in place; tells whether anything moved. */
function sortKeys(keys: string[]): boolean {
  let moved = false;
  for (let i = 1; i < keys.length; i++) {
    if (!isAfter(keys[i - 1]!, keys[i]!)) continue;
    moved = true;
    if (keys.length > 16) {
      keys.sort((a, b) => (isAfter(a, b) ? 1 : -1));
      break;
    }
    // Insertion sort: objects are small, and their keys mostly sorted already.
    const key = keys[i]!;
    let j = i - 1;
    for (; j >= 0 && isAfter(keys[j]!, key); j--) keys[j + 1] = keys[j]!;
    keys[j + 1] = key;
  }
  return moved;
}

/** By code point. JavaScript compares UTF-16 units, which puts surrogates (beyond U+FFFF) before U+E000 to U+FFFF. */
function isAfter(a: string, b: string): boolean {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    const xIsSurrogate = x >= 0xd800 && x <= 0xdfff;
    const yIsSurrogate = y >= 0xd800 && y <= 0xdfff;
    return xIsSurrogate === yIsSurrogate ? x > y : xIsSurrogate;
  }
  return a.length > b.length;
}
