import { invalidParam, missingParam } from '@trellis/protocol/errors.ts';
import { type EventFilter, parseEventFilter } from '@trellis/protocol/filters.ts';
import { parseJson } from '@trellis/protocol/json.ts';

/** Reads a number of things to return: `fallback` when it is left out, never more than `max`. @throws M_INVALID_PARAM */
export function limitOf(text: string | undefined, fallback: number, max: number, min = 0): number {
  if (text === undefined) return fallback;
  const limit = integerOf('limit', text);
  if (limit < min) throw invalidParam(`limit must be ${min} or more`);
  return Math.min(limit, max);
}

/** @throws M_INVALID_PARAM */
export function integerOf(name: string, text: string): number {
  const value = Number(text);
  if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(value)) throw invalidParam(`${name} must be an integer`);
  return value;
}

/** @throws M_MISSING_PARAM where there is neither a direction nor a fallback, M_INVALID_PARAM */
export function directionOf(text: string | undefined, fallback?: 'f' | 'b'): 'forward' | 'backward' {
  const dir = text ?? fallback;
  if (dir === undefined) throw missingParam('dir is missing');
  if (dir !== 'f' && dir !== 'b') throw invalidParam('dir must be "f" or "b"');
  return dir === 'f' ? 'forward' : 'backward';
}

/** @throws M_INVALID_PARAM */
export function booleanOf(name: string, text: string | undefined): boolean {
  if (text === undefined || text === 'false') return false;
  if (text === 'true') return true;
  throw invalidParam(`${name} must be "true" or "false"`);
}

/** A `RoomEventFilter` as JSON in the query string. @throws M_NOT_JSON, M_BAD_JSON */
export function eventFilterOf(text: string | undefined): EventFilter | undefined {
  return text === undefined || text === '' ? undefined : parseEventFilter(parseJson(text));
}
