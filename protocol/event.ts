import type { RoomVersion } from './room-versions.ts';

export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
export interface JsonObject {
  [key: string]: JsonValue;
}

/** A PDU as servers exchange it: every member as the room version's event format has it. */
export type Pdu = JsonObject;

/**
 * What authorisation and state resolution read of an event.
 * `RoomEvent` is one; tests make small ones by hand.
 */
export interface AuthView {
  readonly eventId: string;
  readonly roomId: string;
  readonly type: string;
  readonly sender: string;
  /** `undefined` for events that are not state events. */
  readonly stateKey: string | undefined;
  readonly content: JsonObject;
  readonly originServerTs: number;
  readonly depth: number;
  readonly authEvents: readonly string[];
  readonly prevEvents: readonly string[];
  /** The event that a redaction is aimed at: top level before room version 11, in `content` since. */
  readonly redacts: string | undefined;
  /** Set when the event failed authorisation; a rejected event never authorises another. */
  readonly rejected?: boolean;
}

/** A PDU with its identity worked out: what all of Trellis passes around. Immutable. */
export interface RoomEvent extends AuthView {
  readonly version: RoomVersion;
  readonly pdu: Pdu;
  /** The text that its signatures and its id are over, where that has just been worked out. */
  readonly essential?: string | undefined;
}

/** Room state: `stateKeyOf(type, stateKey)` to event id. */
export type StateMap = Map<string, string>;

/** One string for a (type, state_key) pair. `\0` appears in no event type that a server accepts. */
export function stateKeyOf(type: string, stateKey: string): string {
  return `${type}\0${stateKey}`;
}

/** The pair behind a `stateKeyOf` string. */
export function splitStateKey(key: string): [type: string, stateKey: string] {
  const at = key.indexOf('\0');
  return [key.slice(0, at), key.slice(at + 1)];
}
