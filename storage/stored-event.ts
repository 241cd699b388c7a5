import type { JsonObject, Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';

export type EventStatus = 'accepted' | 'soft-failed' | 'rejected';

export interface EventPlace {
  readonly nid: number;
  /** Place in the room's order and in the stream of events; `undefined` for outliers. */
  readonly pos: number | undefined;
  readonly status: EventStatus;
  /** Id of the state snapshot before the event; `undefined` for outliers. */
  readonly stateBefore: number | undefined;
  /** Id of the snapshot of the room's state before the event came, where it is another than `stateBefore`. */
  readonly roomStateBefore?: number | undefined;
  readonly backfilled?: boolean;
}

/** The state event that another took the place of, for `unsigned.prev_content`. */
export interface ReplacedState {
  readonly eventId: string;
  readonly sender: string;
  readonly content: JsonObject;
}

/** Who sent an event with which transaction id: shown to that device only (spec: "Local echo"). */
export interface EventTransaction {
  readonly deviceId: string;
  readonly txnId: string;
}

/** An event with its place in the database. Changes in one way only: by being redacted. */
export class StoredEvent implements RoomEvent {
  readonly version: RoomVersion;
  readonly eventId: string;
  readonly roomId: string;
  readonly type: string;
  readonly sender: string;
  readonly stateKey: string | undefined;
  readonly originServerTs: number;
  readonly depth: number;
  readonly authEvents: readonly string[];
  readonly prevEvents: readonly string[];
  readonly nid: number;
  readonly pos: number | undefined;
  readonly status: EventStatus;
  /** The state before the event by its own place in the graph. */
  readonly stateBefore: number | undefined;
  /** The state of the room as it was known here when the event came. */
  readonly roomStateBefore: number | undefined;
  readonly backfilled: boolean;
  readonly replaces: ReplacedState | undefined;
  readonly transaction: EventTransaction | undefined;
  /** The redaction that emptied this event. */
  redactedBy: StoredEvent | undefined;
  /** Whether other events relate to this one; `undefined` while nobody has looked. */
  hasRelations: boolean | undefined;
  #pdu: Pdu;
  #json: string | undefined;
  #clientHead: string | undefined;

  constructor(
    event: RoomEvent,
    place: EventPlace,
    more: {
      json?: string;
      replaces?: ReplacedState;
      transaction?: EventTransaction;
      redactedBy?: StoredEvent;
    } = {},
  ) {
    this.version = event.version;
    this.eventId = event.eventId;
    this.roomId = event.roomId;
    this.type = event.type;
    this.sender = event.sender;
    this.stateKey = event.stateKey;
    this.originServerTs = event.originServerTs;
    this.depth = event.depth;
    this.authEvents = event.authEvents;
    this.prevEvents = event.prevEvents;
    this.nid = place.nid;
    this.pos = place.pos;
    this.status = place.status;
    this.stateBefore = place.stateBefore;
    this.roomStateBefore = place.roomStateBefore ?? place.stateBefore;
    this.backfilled = place.backfilled ?? false;
    this.replaces = more.replaces;
    this.transaction = more.transaction;
    this.redactedBy = more.redactedBy;
    this.#pdu = event.pdu;
    this.#json = more.json;
  }

  get rejected(): boolean {
    return this.status === 'rejected';
  }

  get pdu(): Pdu {
    return this.#pdu;
  }

  get content(): JsonObject {
    return this.#pdu.content as JsonObject;
  }

  get redacts(): string | undefined {
    const redacts = this.version.redactsInContent ? this.content.redacts : this.#pdu.redacts;
    return typeof redacts === 'string' ? redacts : undefined;
  }

  /** For how long the event is sticky, in milliseconds (MSC4354); few are. */
  get stickyMs(): number | undefined {
    const sticky = this.#pdu.msc4354_sticky;
    if (sticky === undefined) return undefined;
    const duration = typeof sticky === 'object' && sticky && !Array.isArray(sticky) && sticky.duration_ms;
    return typeof duration === 'number' && duration >= 0 ? duration : undefined;
  }

  /** The PDU as JSON text, serialised once. */
  get json(): string {
    this.#json ??= JSON.stringify(this.#pdu);
    return this.#json;
  }

  /** Takes the place of the event's contents after a redaction. */
  redact(pdu: Pdu, by: StoredEvent): void {
    this.#pdu = pdu;
    this.#json = undefined;
    this.#clientHead = undefined;
    this.redactedBy = by;
  }

  /**
   * The event as clients get it, without `unsigned` and the closing brace: serialised once, shared by all readers,
   * who add what is theirs.
   */
  get clientHead(): string {
    if (this.#clientHead === undefined) {
      let head =
        `{"content":${JSON.stringify(this.#pdu.content)},"event_id":${JSON.stringify(this.eventId)}` +
        `,"origin_server_ts":${this.originServerTs},"room_id":${JSON.stringify(this.roomId)}` +
        `,"sender":${JSON.stringify(this.sender)},"type":${JSON.stringify(this.type)}`;
      if (this.stateKey !== undefined) head += `,"state_key":${JSON.stringify(this.stateKey)}`;
      // Since room version 11 in content; old clients look for it at the top level (spec: m.room.redaction).
      if (this.type === 'm.room.redaction' && this.redacts !== undefined)
        head += `,"redacts":${JSON.stringify(this.redacts)}`;
      if (this.stickyMs !== undefined) head += `,"msc4354_sticky":{"duration_ms":${this.stickyMs}}`;
      this.#clientHead = head;
    }
    return this.#clientHead;
  }
}
