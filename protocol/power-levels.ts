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
  return new LevelsInForce(content, create, version);
}

/** Reads each level when it is asked for: of thousands of users only a few matter to one event. */
class LevelsInForce implements PowerLevels {
  readonly #content: JsonObject | undefined;
  readonly #create: CreateView;
  readonly #version: RoomVersion;

  constructor(content: JsonObject | undefined, create: CreateView, version: RoomVersion) {
    this.#content = content;
    this.#create = create;
    this.#version = version;
  }

  user(userId: string): number {
    const isPrivileged = this.#version.privilegedCreators || !this.#content;
    if (isPrivileged && isCreator(userId, this.#create, this.#version))
      return this.#version.privilegedCreators ? Number.POSITIVE_INFINITY : 100;
    return this.#entry('users', userId) ?? this.#level('users_default', 0);
  }

  toSend(type: string, isState: boolean): number {
    return (
      this.#entry('events', type) ??
      (isState ? this.#level('state_default', 50) : this.#level('events_default', 0))
    );
  }

  notifications(key: string): number {
    return this.#entry('notifications', key) ?? 50;
  }

  get toInvite(): number {
    return this.#level('invite', 0);
  }

  get toKick(): number {
    return this.#level('kick', 50);
  }

  get toBan(): number {
    return this.#level('ban', 50);
  }

  get toRedact(): number {
    return this.#level('redact', 50);
  }

  #level(name: string, fallback: number): number {
    return levelOf(this.#content?.[name], this.#version) ?? fallback;
  }

  #entry(name: 'users' | 'events' | 'notifications', key: string): number | undefined {
    const map = objectAt(this.#content?.[name]);
    return map && Object.hasOwn(map, key) ? levelOf(map[key], this.#version) : undefined;
  }
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
