import { badJson, notJson } from './errors.ts';
import type { JsonValue } from './event.ts';

/** Objects and arrays inside each other at the most: deeper input only serves to exhaust stacks. */
export const MAX_DEPTH = 100;

/**
 * Reads JSON that someone else wrote. Throws M_NOT_JSON when it is none or nests too deeply; with `strict`, M_BAD_JSON for numbers that
 * canonical JSON forbids, also those that `JSON.parse` hides (`1.0`, `1e3`).
 */
export function parseJson(text: string, { strict = false }: { strict?: boolean } = {}): JsonValue {
  let value: JsonValue;
  try {
    value = JSON.parse(text) as JsonValue;
  } catch {
    throw notJson('Not valid JSON');
  }
  if (text.length > 2 * MAX_DEPTH) checkDepth(text);
  if (strict) checkNumbers(text, value);
  return value;
}

/** Whether every number in the value is an integer that canonical JSON allows. */
export function hasOnlySafeNumbers(value: JsonValue | undefined): boolean {
  if (typeof value === 'number') return Number.isSafeInteger(value);
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every(hasOnlySafeNumbers);
  for (const key in value) if (!hasOnlySafeNumbers(value[key])) return false;
  return true;
}

function checkNumbers(text: string, value: JsonValue): void {
  if (!hasOnlySafeNumbers(value)) throw badJson('Numbers must be integers within ±(2^53−1)');
  // `1.0` and `1e3` are integers once parsed. Most texts hold nothing that looks like them, not even in a string.
  if (!/[:,[]\s*-?\d+[.eE]/.test(text)) return;
  JSON.parse(text, (_key, item, context?: { source?: string }) => {
    if (typeof item === 'number' && context?.source !== undefined && /[.eE]/.test(context.source))
      throw badJson('Numbers must be written as integers');
    return item;
  });
}

/** Counts brackets outside strings. */
function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (inString) {
      if (char === 0x5c) i++;
      else if (char === 0x22) inString = false;
    } else if (char === 0x22) inString = true;
    else if (char === 0x7b || char === 0x5b) {
      if (++depth > MAX_DEPTH) throw notJson(`JSON nests deeper than ${MAX_DEPTH} levels`);
    } else if (char === 0x7d || char === 0x5d) depth--;
  }
}
