import { MAX_DEPTH } from './canonical-json.ts';
import { badJson, notJson } from './errors.ts';
import type { JsonValue } from './event.ts';

/**
 * Reads JSON that someone else wrote. Throws M_NOT_JSON when it is none, M_BAD_JSON when it nests deeper than
 * `MAX_DEPTH`. A `__proto__` in it is a member like any other: it becomes an own property and no prototype.
 *
 * With `strict` the text must hold nothing that canonical JSON forbids: M_BAD_JSON for numbers that are not integers
 * within ±(2^53−1) or not written as such (`1.0`, `1e3`, which `JSON.parse` hides), and for lone surrogates, which
 * JSON can escape and UTF-8 cannot hold. Without, these pass: `canonicalJson` refuses what gets that far.
 */
export function parseJson(text: string, { strict = false }: { strict?: boolean } = {}): JsonValue {
  // Before it is parsed: a few megabytes of brackets keep JSON.parse busy for seconds.
  if (isTooDeep(text)) throw badJson(`JSON nests deeper than ${MAX_DEPTH} levels`);
  let value: JsonValue;
  try {
    value = decodeJson(text) as JsonValue;
  } catch {
    throw notJson('Not valid JSON');
  }
  if (strict) checkStrictly(text, value);
  return value;
}

function isTooDeep(text: string): boolean {
  if (text.length <= MAX_DEPTH) return false;
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    switch (text.charCodeAt(i)) {
      case 0x22:
        i = endOfString(text, i + 1);
        break;
      case 0x5b:
      case 0x7b:
        if (++depth > MAX_DEPTH) return true;
        break;
      case 0x5d:
      case 0x7d:
        depth--;
    }
  }
  return false;
}

/** Where the string that begins at `from` has its closing quote; the end of the text when it has none. */
function endOfString(text: string, from: number): number {
  for (let quote = text.indexOf('"', from); quote >= 0; quote = text.indexOf('"', quote + 1)) {
    let backslashes = 0;
    while (quote - backslashes > from && text.charCodeAt(quote - backslashes - 1) === 0x5c) backslashes++;
    if (backslashes % 2 === 0) return quote;
  }
  return text.length;
}

/**
 * `JSON.parse`, for all that holds what others chose: our own text that their events are kept as, too.
 *
 * V8 takes a key that is written with an escape for another one that it read before, when that one is the beginning
 * of how the key is written (https://github.com/nodejs/node/issues/63785): `{"a\"":1}` is read as if it had the key
 * `a\`, once an object with that key was read. Who sends us the one could let us misread what others send. Such a key
 * always holds a backslash, which real ones hardly do: where one does, the keys are read apart.
 */
export function decodeJson(text: string): unknown {
  const value = JSON.parse(text) as JsonValue;
  return text.includes('\\') && hasKeyWithBackslash(value) ? decodeKeysApart(text) : value;
}

function hasKeyWithBackslash(value: JsonValue): boolean {
  if (typeof value !== 'object' || value === null) return false;
  if (Array.isArray(value)) return value.some(hasKeyWithBackslash);
  for (const key in value) if (key.includes('\\') || hasKeyWithBackslash(value[key]!)) return true;
  return false;
}

/** Reads the text with a number in place of each key, and each key as a text of its own. */
function decodeKeysApart(text: string): JsonValue {
  const keys: string[] = [];
  let numbered = '';
  let copied = 0;
  const colon = /[ \t\r\n]*:/y;
  for (let start = text.indexOf('"'); start >= 0; start = text.indexOf('"', colon.lastIndex)) {
    const end = endOfString(text, start + 1) + 1;
    colon.lastIndex = end;
    if (colon.test(text)) {
      numbered += `${text.slice(copied, start)}"k${keys.length}"`;
      keys.push(JSON.parse(text.slice(start, end)) as string);
      copied = end;
    }
    colon.lastIndex = end;
  }
  return withKeys(JSON.parse(numbered + text.slice(copied)) as JsonValue, keys);
}

function withKeys(value: JsonValue, keys: readonly string[]): JsonValue {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map((item) => withKeys(item, keys));
  const object = {};
  for (const key in value)
    Object.defineProperty(object, keys[Number(key.slice(1))]!, {
      value: withKeys(value[key]!, keys),
      configurable: true,
      enumerable: true,
      writable: true,
    });
  return object;
}

function checkStrictly(text: string, value: JsonValue): void {
  if (!isStrict(value)) throw badJson('Numbers must be integers within ±(2^53−1), and strings Unicode text');
  if (mayHideNumber(text) && hidesNumber(text)) throw badJson('Numbers must be written as integers');
}

/** Most texts hold nothing that looks like `1.0` or `1e3`, not even in a string. */
function mayHideNumber(text: string): boolean {
  return /[:,[]\s*-?\d+[.eE]/.test(text) || /^\s*-?\d+[.eE]/.test(text);
}

/** Whether a number outside of strings is written with a fraction or an exponent, which `JSON.parse` hides. */
function hidesNumber(text: string): boolean {
  for (let from = 0; from < text.length; ) {
    const quote = text.indexOf('"', from);
    const to = quote < 0 ? text.length : quote;
    if (/\d[.eE]/.test(text.slice(from, to))) return true;
    from = endOfString(text, to + 1) + 1;
  }
  return false;
}

function isStrict(value: JsonValue): boolean {
  switch (typeof value) {
    case 'number':
      return Number.isSafeInteger(value);
    case 'string':
      return value.isWellFormed();
    case 'object':
      if (value === null) return true;
      if (Array.isArray(value)) return value.every(isStrict);
      for (const key in value) if (!key.isWellFormed() || !isStrict(value[key]!)) return false;
  }
  return true;
}
