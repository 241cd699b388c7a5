import type { JsonValue } from '../event.ts';
import { compileGlob, containsWords } from '../glob.ts';
import { BODY, type EventView, type PropertyKey, propertyKey } from './event-view.ts';
import type { DefaultCondition } from './rules.ts';

/** The user whose rules are evaluated. */
export interface UserContext {
  readonly userId: string;
  /** In the room at hand. Asked for only by events for which `needsDisplayNames`. */
  readonly displayName?: string;
  /** Whether the user follows a thread (MSC4306). Left out where the user's clients do not know of that. */
  readonly subscribedTo?: ((roomId: string, thread: string) => boolean) | undefined;
}

export type Test = (view: EventView, user: UserContext) => boolean;

export interface Condition {
  readonly test: Test;
  /** The outcome may differ between users who have the same rule. */
  readonly ofUser: boolean;
  /** What must hold in any case, where the outcome differs between users. */
  readonly eventTest?: Test;
}

/** Longer patterns match nothing: no client writes them. */
export const MAX_PATTERN_LENGTH = 1024;

const never: Condition = { test: () => false, ofUser: false };

/** Conditions of unknown kinds, or malformed ones, never hold (spec: "Conditions"). */
export function compileCondition(condition: DefaultCondition): Condition {
  switch (condition.kind) {
    case 'event_match':
      return eventMatch(condition);
    case 'event_property_is':
      return eventPropertyIs(condition);
    case 'event_property_contains':
      return eventPropertyContains(condition);
    case 'contains_display_name':
      return { test: containsDisplayName, ofUser: true };
    case 'room_member_count':
      return roomMemberCount(condition.is);
    case 'sender_notification_permission':
      return senderNotificationPermission(condition.key);
    case 'io.element.msc4306.thread_subscription':
      return threadSubscription(condition.subscribed);
    default:
      return never;
  }
}

function eventMatch({ key, pattern, pattern_type }: DefaultCondition): Condition {
  if (typeof key !== 'string') return never;
  const property = propertyKey(key);
  if (pattern_type === 'user_id')
    return {
      test: (view, { userId }) => view.lowerCase(property) === userId.toLowerCase(),
      ofUser: true,
    };
  return typeof pattern === 'string' ? patternMatch(property, pattern) : never;
}

/** `event_match` by a pattern; in `content.body` on words. */
function patternMatch(property: PropertyKey, pattern: string): Condition {
  if (pattern.length > MAX_PATTERN_LENGTH) return never;
  const lower = pattern.toLowerCase();
  const onWords = property.text === BODY.text;
  if (!onWords && !/[*?]/.test(lower))
    return { test: (view) => view.lowerCase(property) === lower, ofUser: false };
  const glob = compileGlob(lower);
  return {
    test: (view) => {
      const text = view.lowerCase(property);
      if (text === undefined) return false;
      view.stepsLeft -= glob.cost(text.length);
      if (view.stepsLeft < 0) return false;
      return onWords ? glob.matchesWords(text) : glob.matches(text);
    },
    ofUser: false,
  };
}

/** The condition that makes up a `content` rule. */
export function bodyMatch(pattern: string): Condition {
  return patternMatch(BODY, pattern);
}

/** The condition of the predefined `content` rule for the user's localpart, which is no pattern. */
export const containsLocalpart: Condition = {
  test: (view, { userId }) => {
    const body = view.lowerCase(BODY);
    return body !== undefined && containsWords(body, localpartOf(userId).toLowerCase());
  },
  ofUser: true,
};

/** The condition that makes up `room` and `sender` rules. */
export function propertyEquals(key: 'room_id' | 'sender', value: string): Condition {
  return eventPropertyIs({ kind: 'event_property_is', key, value });
}

export function localpartOf(userId: string): string {
  return userId.slice(1, userId.indexOf(':'));
}

function eventPropertyIs({ key, value }: DefaultCondition): Condition {
  if (typeof key !== 'string' || !isScalar(value)) return never;
  const property = propertyKey(key);
  return { test: (view) => view.property(property) === value, ofUser: false };
}

function eventPropertyContains({ key, value, value_type }: DefaultCondition): Condition {
  if (typeof key !== 'string') return never;
  const property = propertyKey(key);
  if (value_type === 'user_id')
    return { test: (view, { userId }) => view.members(property)?.has(userId) === true, ofUser: true };
  if (!isScalar(value)) return never;
  return { test: (view) => view.members(property)?.has(value) === true, ofUser: false };
}

function isScalar(value: JsonValue | undefined): value is string | number | boolean | null {
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return true;
  return Number.isSafeInteger(value);
}

function containsDisplayName(view: EventView, { displayName }: UserContext): boolean {
  if (!displayName) return false;
  const body = view.lowerCase(BODY);
  return body !== undefined && containsWords(body, displayName.toLowerCase());
}

function roomMemberCount(is: JsonValue | undefined): Condition {
  const match = typeof is === 'string' ? /^(==|<=|>=|<|>)?([0-9]{1,15})$/.exec(is) : null;
  if (!match) return never;
  const count = Number(match[2]);
  const compare = COMPARISONS[match[1] ?? '=='];
  return compare ? { test: (view) => compare(view.room.memberCount, count), ofUser: false } : never;
}

function threadSubscription(subscribed: JsonValue | undefined): Condition {
  if (typeof subscribed !== 'boolean') return never;
  return {
    eventTest: ({ thread }) => thread !== undefined,
    test: ({ roomId, thread }, { subscribedTo }) =>
      thread !== undefined && subscribedTo !== undefined && subscribedTo(roomId, thread) === subscribed,
    ofUser: true,
  };
}

const COMPARISONS: Record<string, (a: number, b: number) => boolean> = {
  '==': (a, b) => a === b,
  '<': (a, b) => a < b,
  '>': (a, b) => a > b,
  '<=': (a, b) => a <= b,
  '>=': (a, b) => a >= b,
};

function senderNotificationPermission(key: JsonValue | undefined): Condition {
  if (typeof key !== 'string') return never;
  return { test: ({ room }) => room.senderPowerLevel >= room.notificationLevel(key), ofUser: false };
}
