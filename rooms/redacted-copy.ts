import { redact } from '@trellis/protocol/redaction.ts';
import { StoredEvent } from '@trellis/storage/stored-event.ts';

/** An event as its redaction would leave it, for who may not see more of it. The event itself stays as it is. */
export function redactedCopy(event: StoredEvent): StoredEvent {
  const { version, eventId, roomId, type, sender, stateKey, content, originServerTs } = event;
  const { depth, authEvents, prevEvents, redacts } = event;
  const fields = { version, eventId, roomId, type, sender, stateKey, content, originServerTs };
  const pdu = redact(event.pdu, version);
  const copy = new StoredEvent({ ...fields, depth, authEvents, prevEvents, redacts, pdu }, event);
  copy.hasRelations = event.hasRelations;
  return copy;
}
