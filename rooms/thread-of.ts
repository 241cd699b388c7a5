import type { RoomEvent } from '@trellis/protocol/event.ts';
import type { EventStore } from '@trellis/storage/events.ts';
import { relationOf } from './append.ts';

/** What receipts and counts call the events that are in no thread (spec: "Threaded read receipts"). */
export const MAIN_TIMELINE = 'main';

/** Relations that are followed in search of a thread, as the spec recommends. */
const MAX_HOPS = 3;

/**
 * The root of the thread that an event is in, or `main`: by its own `m.thread` relation or by that of an event which
 * it relates to. At once for nearly all events.
 */
export function threadOf(events: EventStore, event: RoomEvent): string | Promise<string> {
  const relation = relationOf(event);
  if (!relation) return MAIN_TIMELINE;
  if (relation.relType === 'm.thread') return relation.target;
  return followRelations(events, event).then(({ root }) => root ?? MAIN_TIMELINE);
}

/**
 * Whether a receipt on an event may be for that thread. The root counts as of its thread here, and so does what
 * relates to the root in any way.
 */
export async function isOfThread(events: EventStore, event: RoomEvent, threadId: string): Promise<boolean> {
  if (threadId === MAIN_TIMELINE) return (await threadOf(events, event)) === MAIN_TIMELINE;
  const { root, passed } = await followRelations(events, event);
  return root === threadId || passed.includes(threadId);
}

async function followRelations(
  events: EventStore,
  event: RoomEvent,
): Promise<{ root: string | undefined; passed: string[] }> {
  const passed = [event.eventId];
  let at: RoomEvent | undefined = event;
  for (let hops = 0; at && hops <= MAX_HOPS; hops++) {
    const relation = relationOf(at);
    if (!relation) break;
    if (relation.relType === 'm.thread') return { root: relation.target, passed };
    passed.push(relation.target);
    const target: RoomEvent | undefined = await events.get(relation.target);
    at = target?.roomId === event.roomId ? target : undefined;
  }
  return { root: undefined, passed };
}
