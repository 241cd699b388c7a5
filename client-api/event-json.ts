import { stickyUntil } from '@trellis/rooms/sticky-events.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** For whom an event is written out. */
export interface Viewer {
  readonly userId: string;
  readonly deviceId: string | undefined;
  /** The viewer's membership at the events (spec: `unsigned.membership`): the same for all, or by event id. */
  readonly membership?: string | ReadonlyMap<string, string>;
  /** Aggregations of relations as JSON text, by event id (spec: "Aggregations of child events"). */
  readonly relations?: ReadonlyMap<string, string>;
  /** As servers send it to each other (spec: `event_format` of a filter). */
  readonly format?: 'client' | 'federation';
  /** `undefined`: now. */
  readonly now?: number;
}

/** An event as JSON text for a client: the shared part with what is the viewer's own. */
export function eventJson(event: StoredEvent, viewer: Viewer): string {
  const head = viewer.format === 'federation' ? federationHead(event) : event.clientHead;
  return `${head},"unsigned":{${unsigned(event, viewer)}}}`;
}

export function eventListJson(events: readonly StoredEvent[], viewer: Viewer): string {
  const now = viewer.now ?? Date.now();
  const withNow = { ...viewer, now };
  return `[${events.map((event) => eventJson(event, withNow)).join(',')}]`;
}

function federationHead({ pdu, eventId }: StoredEvent): string {
  return JSON.stringify({ ...pdu, event_id: eventId, unsigned: undefined }).slice(0, -1);
}

function unsigned(event: StoredEvent, viewer: Viewer): string {
  let json = `"age":${Math.max(0, (viewer.now ?? Date.now()) - event.originServerTs)}`;
  const membership =
    typeof viewer.membership === 'object' ? viewer.membership.get(event.eventId) : viewer.membership;
  if (membership !== undefined) json += `,"membership":${JSON.stringify(membership)}`;
  const { transaction, replaces, redactedBy } = event;
  if (transaction && transaction.deviceId === viewer.deviceId && event.sender === viewer.userId)
    json += `,"transaction_id":${JSON.stringify(transaction.txnId)}`;
  if (replaces)
    json +=
      `,"prev_content":${JSON.stringify(replaces.content)},"prev_sender":${JSON.stringify(replaces.sender)}` +
      `,"replaces_state":${JSON.stringify(replaces.eventId)}`;
  if (redactedBy) json += `,"redacted_because":${eventJson(redactedBy, { ...viewer, relations: undefined })}`;
  if (event.stickyMs !== undefined) {
    const left = (stickyUntil(event) ?? 0) - (viewer.now ?? Date.now());
    json += `,"msc4354_sticky_duration_ttl_ms":${Math.max(0, left)}`;
  }
  const relations = viewer.relations?.get(event.eventId);
  if (relations !== undefined) json += `,"m.relations":${relations}`;
  return json;
}
