import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/**
 * Events as JSON text of an array, as clients get them ("Pushing events"). An invite or a knock comes with what there is
 * to see of the room, as long as it stands.
 */
export async function eventsJson(
  events: readonly StoredEvent[],
  { strippedState }: { readonly strippedState: Memberships['strippedState'] },
): Promise<string> {
  const now = Date.now();
  const texts: string[] = [];
  for (const event of events) {
    const { membership } = event.content;
    const mayHaveState =
      event.type === 'm.room.member' && (membership === 'invite' || membership === 'knock');
    const state = mayHaveState ? await strippedState(event.stateKey!, event.roomId) : undefined;
    texts.push(eventJson(event, now, state && `,"${membership}_room_state":${state}`));
  }
  return `[${texts.join(',')}]`;
}

function eventJson(event: StoredEvent, now: number, more = ''): string {
  const { replaces, redactedBy } = event;
  let unsigned = `"age":${Math.max(0, now - event.originServerTs)}`;
  if (replaces)
    unsigned +=
      `,"prev_content":${JSON.stringify(replaces.content)},"prev_sender":${JSON.stringify(replaces.sender)}` +
      `,"replaces_state":${JSON.stringify(replaces.eventId)}`;
  if (redactedBy) unsigned += `,"redacted_because":${eventJson(redactedBy, now)}`;
  return `${event.clientHead},"unsigned":{${unsigned}${more}}}`;
}
