import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { viewOf } from '@trellis/protocol/make-event.ts';
import { signaturesBy } from '@trellis/protocol/signing.ts';
import { badAnswer } from './remote-handshakes.ts';

/** Signatures of one server that are taken over. */
const MAX_SIGNATURES = 10;

/**
 * Our event with the signatures that another server added to it. Nothing else of what came back is used, and it must
 * be the same event: whoever returns another one is not to be trusted with ours.
 */
export function withSignaturesOf(server: string, ours: RoomEvent, returned: Pdu): RoomEvent {
  if (text(returned) !== text(ours.pdu))
    throw badAnswer(server, 'it returned another event than the one sent');
  const added: JsonObject = {};
  for (const [keyId, signature] of Object.entries(signaturesBy(returned, server)).slice(0, MAX_SIGNATURES))
    if (typeof signature === 'string') added[keyId] = signature;
  if (Object.keys(added).length === 0) throw badAnswer(server, 'it did not sign the event');
  const pdu: Pdu = { ...ours.pdu, signatures: { ...(ours.pdu.signatures as JsonObject), [server]: added } };
  try {
    checkPdu(pdu, ours.version);
  } catch (error) {
    if (error instanceof MatrixError) throw badAnswer(server, `with its signatures ${error.message}`);
    throw error;
  }
  return viewOf(pdu, ours.eventId, ours.version);
}

/** All that is not signed or added later. */
function text(pdu: Pdu): string | undefined {
  try {
    return canonicalJson({ ...pdu, signatures: undefined, unsigned: undefined }, { lax: true });
  } catch {
    return undefined;
  }
}
