import { objectAt } from './auth-event-selection.ts';
import type { AuthView, JsonObject, JsonValue } from './event.ts';
import type { RoomVersion } from './room-versions.ts';

/** Power levels in force: the event's, or the defaults of a room without one. */
export interface PowerLevels {
  user(userId: string): number;
  toSend(type: string, isState: boolean): number;
  /** Level for `notifications.<key>`, such as `room`. */
  notifications(key: string): number;
  readonly toInvite: number;
  readonly toKick: number;
  readonly toBan: number;
  readonly toRedact: number;
}

type CreateView = Pick<AuthView, 'sender' | 'content'>;

/** Users who made the room, who stand above all levels since room version 12 (MSC4289). */
export function creatorsOf(create: CreateView, version: RoomVersion): Set<string> {
  const creators = new Set<string>();
  if (version.implicitCreator) creators.add(create.sender);
  else if (typeof create.content.creator === 'string') creators.add(create.content.creator);
  if (version.privilegedCreators && Array.isArray(create.content.additional_creators))
    for (const creator of create.content.additional_creators)
      if (typeof creator === 'string') creators.add(creator);
  return creators;
}

/**
 * Power levels by `m.room.power_levels`, or by the defaults of its description in the Client-Server API.
 *
 * @param content of `m.room.power_levels`, if the room has one
 */
export function powerLevels(
  content: JsonObject | undefined,
  create: CreateView,
  version: RoomVersion,
): PowerLevels {
  const users = objectAt(content?.users);
  const events = objectAt(content?.events);
  const notifications = objectAt(content?.notifications);
  const level = (value: JsonValue | undefined, fallback: number) => levelOf(value, version) ?? fallback;
  const entry = (object: JsonObject | undefined, key: string, fallback: number) =>
    object && Object.hasOwn(object, key) ? level(object[key], fallback) : fallback;
  return {
    user(userId) {
      if (version.privilegedCreators && isCreator(userId, create, version)) return Number.POSITIVE_INFINITY;
      if (!content) return isCreator(userId, create, version) ? 100 : 0;
      return entry(users, userId, level(content.users_default, 0));
    },
    toSend: (type, isState) =>
      entry(events, type, isState ? level(content?.state_default, 50) : level(content?.events_default, 0)),
    notifications: (key) => entry(notifications, key, 50),
    get toInvite() {
      return level(content?.invite, 0);
    },
    get toKick() {
      return level(content?.kick, 50);
    },
    get toBan() {
      return level(content?.ban, 50);
    },
    get toRedact() {
      return level(content?.redact, 50);
    },
  };
}

function isCreator(userId: string, create: CreateView, version: RoomVersion): boolean {
  if ((version.implicitCreator ? create.sender : create.content.creator) === userId) return true;
  const additional = version.privilegedCreators && create.content.additional_creators;
  return Array.isArray(additional) && additional.includes(userId);
}

/**
 * A level as a number; `undefined` when it is none. Before room version 10 strings that hold an integer count, and
 * fractions are cut off (room version 1, "accept values as strings" and "as floats").
 */
export function levelOf(value: JsonValue | undefined, version: RoomVersion): number | undefined {
  if (typeof value === 'number') {
    if (Number.isInteger(value)) return value;
    return version.integerPowerLevels || !Number.isFinite(value) ? undefined : Math.trunc(value);
  }
  if (typeof value !== 'string' || version.integerPowerLevels || value.length > MAX_LEVEL_LENGTH)
    return undefined;
  const text = value.trim();
  return /^[+-]?\d+$/.test(text) ? Number(text) : undefined;
}

/** Zeros and white space may stand around a level without end; no more than this is read. */
const MAX_LEVEL_LENGTH = 255;
