import { badJson } from './errors.ts';
import type { JsonObject, JsonValue } from './event.ts';
import { compileGlob, type Glob } from './glob.ts';
import { parsePropertyPath, propertyAt } from './property-path.ts';

/**
 * Filters (spec: client-server API, "Filtering"), checked. All members of the spec's `EventFilter` and
 * `RoomEventFilter`, and those of MSC3874. Immutable: what is made ready for matching is remembered by the object.
 */
export interface EventFilter {
  readonly limit?: number;
  readonly types?: readonly string[];
  readonly not_types?: readonly string[];
  readonly senders?: readonly string[];
  readonly not_senders?: readonly string[];
  readonly rooms?: readonly string[];
  readonly not_rooms?: readonly string[];
  readonly contains_url?: boolean;
  readonly lazy_load_members?: boolean;
  readonly include_redundant_members?: boolean;
  readonly unread_thread_notifications?: boolean;
  /** Relation types of the event itself (MSC3874). */
  readonly rel_types?: readonly string[];
  readonly not_rel_types?: readonly string[];
}

export interface RoomFilter {
  readonly rooms?: readonly string[];
  readonly not_rooms?: readonly string[];
  readonly include_leave?: boolean;
  readonly timeline?: EventFilter;
  readonly state?: EventFilter;
  readonly ephemeral?: EventFilter;
  readonly account_data?: EventFilter;
}

export interface Filter {
  readonly event_fields?: readonly string[];
  readonly event_format?: 'client' | 'federation';
  readonly presence?: EventFilter;
  readonly account_data?: EventFilter;
  readonly room?: RoomFilter;
  /** Fields of profiles whose changes are wanted (MSC4429). */
  readonly profile_fields?: readonly string[];
}

/** What a filter looks at. */
export interface FilterableEvent {
  readonly type: string;
  readonly sender: string;
  /** Room lists are not looked at where there is none. */
  readonly roomId?: string | null;
  readonly content: object;
}

/** Checks a filter as clients upload it. Members that the spec does not know are left out. @throws M_BAD_JSON */
export function parseFilter(json: JsonValue): Filter {
  const body = objectOf(json, 'The filter');
  return withoutUndefined<Filter>({
    event_fields: strings(body, 'event_fields'),
    event_format: eventFormat(body),
    presence: eventFilterAt(body, 'presence'),
    account_data: eventFilterAt(body, 'account_data'),
    room: body.room === undefined ? undefined : parseRoomFilter(body.room),
    profile_fields: profileFields(body['org.matrix.msc4429.profile_fields'] ?? body.profile_fields),
  });
}

function parseRoomFilter(json: JsonValue): RoomFilter {
  const body = objectOf(json, 'room');
  return withoutUndefined<RoomFilter>({
    rooms: roomIds(body, 'rooms'),
    not_rooms: roomIds(body, 'not_rooms'),
    include_leave: boolean(body, 'include_leave'),
    timeline: eventFilterAt(body, 'timeline'),
    state: eventFilterAt(body, 'state'),
    ephemeral: eventFilterAt(body, 'ephemeral'),
    account_data: eventFilterAt(body, 'account_data'),
  });
}

/** Checks a `RoomEventFilter`, which `/messages` and `/context` take alone. @throws M_BAD_JSON */
export function parseEventFilter(json: JsonValue): EventFilter {
  const body = objectOf(json, 'The filter');
  return withoutUndefined<EventFilter>({
    limit: limit(body),
    types: strings(body, 'types'),
    not_types: strings(body, 'not_types'),
    senders: userIds(body, 'senders'),
    not_senders: userIds(body, 'not_senders'),
    rooms: roomIds(body, 'rooms'),
    not_rooms: roomIds(body, 'not_rooms'),
    contains_url: boolean(body, 'contains_url'),
    lazy_load_members: boolean(body, 'lazy_load_members'),
    include_redundant_members: boolean(body, 'include_redundant_members'),
    unread_thread_notifications:
      boolean(body, 'unread_thread_notifications') ??
      boolean(body, 'org.matrix.msc3773.unread_thread_notifications'),
    rel_types: strings(body, 'rel_types') ?? strings(body, 'org.matrix.msc3874.rel_types'),
    not_rel_types: strings(body, 'not_rel_types') ?? strings(body, 'org.matrix.msc3874.not_rel_types'),
  });
}

function profileFields(json: JsonValue | undefined): readonly string[] | undefined {
  return json === undefined ? undefined : strings(objectOf(json, 'profile_fields'), 'ids');
}

function eventFilterAt(body: JsonObject, name: string): EventFilter | undefined {
  const value = body[name];
  if (value === undefined) return undefined;
  return parseEventFilter(objectOf(value, name));
}

function objectOf(json: JsonValue, what: string): JsonObject {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw badJson(`${what} must be an object`);
  return json;
}

function strings(body: JsonObject, name: string): readonly string[] | undefined {
  const value = body[name];
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || !value.every((item) => typeof item === 'string'))
    throw badJson(`${name} must be a list of strings`);
  return value as string[];
}

function roomIds(body: JsonObject, name: string): readonly string[] | undefined {
  const list = strings(body, name);
  if (list && !list.every((id) => id.startsWith('!'))) throw badJson(`${name} must be a list of room ids`);
  return list;
}

function userIds(body: JsonObject, name: string): readonly string[] | undefined {
  const list = strings(body, name);
  if (list && !list.every((id) => id.startsWith('@'))) throw badJson(`${name} must be a list of user ids`);
  return list;
}

function boolean(body: JsonObject, name: string): boolean | undefined {
  const value = body[name];
  if (value === undefined || typeof value === 'boolean') return value;
  throw badJson(`${name} must be a boolean`);
}

function limit({ limit: value }: JsonObject): number | undefined {
  if (value === undefined) return undefined;
  if (!Number.isSafeInteger(value) || (value as number) < 0)
    throw badJson('limit must be a positive integer');
  return value as number;
}

function eventFormat({ event_format: value }: JsonObject): Filter['event_format'] {
  if (value === undefined || value === 'client' || value === 'federation') return value;
  throw badJson('event_format must be "client" or "federation"');
}

function withoutUndefined<T extends object>(members: T): T {
  for (const name of Object.keys(members) as Array<keyof T>)
    if (members[name] === undefined) delete members[name];
  return members;
}

type Matcher = (event: FilterableEvent) => boolean;

const matchers = new WeakMap<EventFilter, Matcher>();

/** Whether the filter lets the event pass. */
export function matchesEventFilter(filter: EventFilter, event: FilterableEvent): boolean {
  let matcher = matchers.get(filter);
  if (!matcher) {
    matcher = compileFilter(filter);
    matchers.set(filter, matcher);
  }
  return matcher(event);
}

function compileFilter(filter: EventFilter): Matcher {
  const tests: Matcher[] = [];
  const { contains_url } = filter;
  const among = (
    list: readonly string[] | undefined,
    wanted: boolean,
    of: (event: FilterableEvent) => unknown,
  ) => {
    if (!list) return;
    const set = new Set<unknown>(list);
    tests.push((event) => set.has(of(event)) === wanted);
  };
  if (filter.types) tests.push(typeTest(filter.types));
  if (filter.not_types) {
    const excluded = typeTest(filter.not_types);
    tests.push((event) => !excluded(event));
  }
  among(filter.senders, true, ({ sender }) => sender);
  among(filter.not_senders, false, ({ sender }) => sender);
  among(filter.rel_types, true, relationType);
  among(filter.not_rel_types, false, relationType);
  if (filter.rooms ?? filter.not_rooms)
    tests.push(({ roomId }) => roomId == null || admitsRoom(filter, roomId));
  if (contains_url !== undefined) tests.push(({ content }) => Object.hasOwn(content, 'url') === contains_url);
  return (event) => tests.every((test) => test(event));
}

/** Whether events of the room may pass (`rooms` and `not_rooms`). */
export function admitsRoom(filter: Pick<EventFilter, 'rooms' | 'not_rooms'>, roomId: string): boolean {
  if (filter.not_rooms?.includes(roomId)) return false;
  return filter.rooms === undefined || filter.rooms.includes(roomId);
}

function typeTest(types: readonly string[]): Matcher {
  const exact = new Set(types.filter((type) => !type.includes('*')));
  const globs: Glob[] = types
    .filter((type) => type.includes('*'))
    .map((type) => compileGlob(type, { questionMark: false }));
  return ({ type }) => exact.has(type) || globs.some((glob) => glob.matches(type));
}

function relationType({ content }: FilterableEvent): JsonValue | undefined {
  return propertyAt(content as JsonObject, ['m.relates_to', 'rel_type']);
}

/** What `event_fields` leaves of an event. */
export function pickFields(event: JsonObject, fields: readonly string[]): JsonObject {
  const picked: JsonObject = {};
  for (const path of fields.map(parsePropertyPath)) {
    const value = propertyAt(event, path);
    if (value !== undefined) place(picked, path, value);
  }
  return picked;
}

function place(target: JsonObject, path: readonly string[], value: JsonValue): void {
  let at = target;
  for (const name of path.slice(0, -1)) {
    const inner = Object.hasOwn(at, name) ? at[name] : undefined;
    if (typeof inner === 'object' && inner !== null && !Array.isArray(inner)) at = inner;
    else {
      const made: JsonObject = {};
      define(at, name, made);
      at = made;
    }
  }
  define(at, path.at(-1)!, value);
}

/** Assignment that also makes a member of `__proto__`. */
function define(target: JsonObject, name: string, value: JsonValue): void {
  Object.defineProperty(target, name, { value, writable: true, enumerable: true, configurable: true });
}
