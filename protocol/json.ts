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
    value = JSON.parse(text) as JsonValue;
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

function checkStrictly(text: string, value: JsonValue): void {
  if (!hasOnlySafeNumbers(value)) throw badJson('Numbers must be integers within ±(2^53−1)');
  if (!mayHideSomething(text)) return;
  JSON.parse(text, (key, item, context?: { source?: string }) => {
    if (!key.isWellFormed() || (typeof item === 'string' && !item.isWellFormed()))
      throw badJson('A string holds a lone surrogate');
    if (typeof item === 'number' && /[.eE]/.test(context?.source ?? ''))
      throw badJson('Numbers must be written as integers');
    return item;
  });
}

/** Most texts hold nothing that looks like `1.0` or `1e3`, not even in a string, and no escaped surrogate. */
function mayHideSomething(text: string): boolean {
  return (
    /[:,[]\s*-?\d+[.eE]/.test(text) ||
    /^\s*-?\d+[.eE]/.test(text) ||
    text.includes('\\ud') ||
    text.includes('\\uD')
  );
}

function hasOnlySafeNumbers(value: JsonValue): boolean {
  if (typeof value === 'number') return Number.isSafeInteger(value);
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every(hasOnlySafeNumbers);
  for (const key in value) if (!hasOnlySafeNumbers(value[key]!)) return false;
  return true;
}
