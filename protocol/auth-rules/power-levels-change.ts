import { objectAt } from '../auth-event-selection.ts';
import type { AuthView, JsonObject, JsonValue } from '../event.ts';
import { parseUserId } from '../identifiers.ts';
import { creatorsOf, levelOf } from '../power-levels.ts';
import type { RoomVersion } from '../room-versions.ts';

const SINGLE_LEVELS = [
  'users_default',
  'events_default',
  'state_default',
  'ban',
  'redact',
  'kick',
  'invite',
] as const;

/**
 * Rule 10: a new `m.room.power_levels` against the one in force.
 *
 * @param power the sender's level now
 */
export function authorisePowerLevels(
  event: AuthView,
  current: JsonObject | undefined,
  power: number,
  create: AuthView,
  version: RoomVersion,
): string | undefined {
  const next = event.content;
  const malformed = checkFormat(next, version);
  if (malformed !== undefined) return malformed;
  // 10.4
  if (version.privilegedCreators) {
    const creators = creatorsOf(create, version);
    for (const userId of Object.keys(objectAt(next.users) ?? {}))
      if (creators.has(userId)) return 'creators have no power level of their own';
  }
  // 10.5
  if (!current) return undefined;
  // 10.6
  for (const name of SINGLE_LEVELS) {
    const before = levelOf(current[name], version);
    const after = levelOf(next[name], version);
    if (before === after) continue;
    if (before !== undefined && before > power) return `${name} is above the sender's power level`;
    if (after !== undefined && after > power) return `${name} would be above the sender's power level`;
  }
  // 10.7, 10.8
  for (const map of version.notificationsAuth
    ? (['events', 'notifications'] as const)
    : (['events'] as const)) {
    for (const [key, before, after] of changes(current[map], next[map], version)) {
      if (before !== undefined && before > power) return `${map}.${key} is above the sender's power level`;
      if (after !== undefined && after > power)
        return `${map}.${key} would be above the sender's power level`;
    }
  }
  // 10.9, 10.10
  for (const [userId, before, after] of changes(current.users, next.users, version)) {
    if (before !== undefined && userId !== event.sender && before >= power)
      return `${userId} is not below the sender`;
    if (after !== undefined && after > power) return `${userId} would be above the sender`;
  }
  return undefined;
}

/**
 * 10.1 to 10.3. Before room version 10 the rules ask this of `users` only; but the format of levels is given for all
 * of them ("accept values as strings", "as floats"), and what a server can't read it can't compare either.
 */
function checkFormat(content: JsonObject, version: RoomVersion): string | undefined {
  const isLevel = (value: JsonValue | undefined) => levelOf(value, version) !== undefined;
  for (const name of SINGLE_LEVELS)
    if (content[name] !== undefined && !isLevel(content[name])) return `${name} is not an integer`;
  for (const name of version.notificationsAuth
    ? (['events', 'notifications'] as const)
    : (['events'] as const)) {
    if (content[name] === undefined) continue;
    const map = objectAt(content[name]);
    if (!map || !Object.values(map).every(isLevel)) return `${name} is not an object of integers`;
  }
  if (content.users === undefined) return undefined;
  const users = objectAt(content.users);
  if (!users) return 'users is not an object';
  for (const [userId, level] of Object.entries(users)) {
    if (!parseUserId(userId)) return 'users holds what is no user id';
    if (!isLevel(level)) return 'users holds a level that is no integer';
  }
  return undefined;
}

/** Entries that differ between two objects of levels, with both levels. */
function* changes(
  before: JsonValue | undefined,
  after: JsonValue | undefined,
  version: RoomVersion,
): Generator<[key: string, before: number | undefined, after: number | undefined]> {
  const old = objectAt(before) ?? {};
  const now = objectAt(after) ?? {};
  const level = (object: JsonObject, key: string) =>
    Object.hasOwn(object, key) ? levelOf(object[key], version) : undefined;
  for (const key of new Set([...Object.keys(old), ...Object.keys(now)])) {
    const oldLevel = level(old, key);
    const newLevel = level(now, key);
    if (oldLevel !== newLevel) yield [key, oldLevel, newLevel];
  }
}
