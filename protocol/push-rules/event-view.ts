import type { JsonObject, JsonValue } from '../event.ts';
import { type PropertyPath, parsePropertyPath, propertyAt } from '../property-path.ts';

/** What push rules read of an event; a `RoomEvent` has it all. */
export interface PushEvent {
  readonly eventId: string;
  readonly roomId: string;
  readonly type: string;
  readonly sender: string;
  readonly stateKey: string | undefined;
  readonly content: JsonObject;
}

/** What push rules read of the room as it is after the event: the same for all its members. */
export interface RoomContext {
  /** Joined members. */
  readonly memberCount: number;
  readonly senderPowerLevel: number;
  /** The level that `notifications.<key>` of the power levels asks for. */
  notificationLevel(key: string): number;
}

/** The path of a property, taken apart once for all events. */
export interface PropertyKey {
  readonly text: string;
  readonly path: PropertyPath;
}

export function propertyKey(text: string): PropertyKey {
  return { text, path: parsePropertyPath(text) };
}

const MENTIONS = propertyKey('content.m\\.mentions');
export const BODY = propertyKey('content.body');

/** An event made ready for the rules of many users: what one rule looked up, the next finds at hand. */
export class EventView {
  readonly sender: string;
  readonly roomId: string;
  /** The root of the thread that the event is in. */
  readonly thread: string | undefined;
  readonly room: RoomContext;
  /** The event says whom it mentions, so that names in its text mean nothing. */
  readonly hasMentions: boolean;
  /** Work that matching may still do for the user at hand. */
  stepsLeft = 0;
  readonly #root: JsonObject;
  readonly #lower = new Map<string, string | undefined>();
  readonly #sets = new Map<string, ReadonlySet<JsonValue> | undefined>();

  constructor(event: PushEvent, room: RoomContext) {
    this.sender = event.sender;
    this.roomId = event.roomId;
    this.thread = threadOf(event.content);
    this.room = room;
    this.#root = {
      type: event.type,
      sender: event.sender,
      content: event.content,
      room_id: event.roomId,
      event_id: event.eventId,
    };
    if (event.stateKey !== undefined) this.#root.state_key = event.stateKey;
    this.hasMentions = this.property(MENTIONS) !== undefined;
  }

  property(key: PropertyKey): JsonValue | undefined {
    return propertyAt(this.#root, key.path);
  }

  /** The property in lower case; `undefined` when it is no text. */
  lowerCase(key: PropertyKey): string | undefined {
    let lower = this.#lower.get(key.text);
    if (lower === undefined && !this.#lower.has(key.text)) {
      const value = this.property(key);
      lower = typeof value === 'string' ? value.toLowerCase() : undefined;
      this.#lower.set(key.text, lower);
    }
    return lower;
  }

  /** The members of a list; `undefined` when the property is none. */
  members(key: PropertyKey): ReadonlySet<JsonValue> | undefined {
    let set = this.#sets.get(key.text);
    if (set === undefined && !this.#sets.has(key.text)) {
      const value = this.property(key);
      set = Array.isArray(value) ? new Set(value) : undefined;
      this.#sets.set(key.text, set);
    }
    return set;
  }
}

function threadOf(content: JsonObject): string | undefined {
  const relation = content['m.relates_to'];
  if (typeof relation !== 'object' || relation === null || Array.isArray(relation)) return undefined;
  return relation.rel_type === 'm.thread' && typeof relation.event_id === 'string'
    ? relation.event_id
    : undefined;
}

/** Makes an event ready to be evaluated for many users. */
export function flattenEvent(event: PushEvent, room: RoomContext): EventView {
  return new EventView(event, room);
}

/** Whether display names decide anything for this event, so that they need to be looked up. */
export function needsDisplayNames(view: EventView): boolean {
  return !view.hasMentions && typeof view.property(BODY) === 'string';
}
