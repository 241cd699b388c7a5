import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Rooms } from './rooms.ts';

/** Events of one gap that are looked at. */
const MAX_EVENTS = 10_000;

/**
 * For what is done once in the whole installation when an event comes, by the process that stored it: when a process
 * dies before it has told of what it stored, the one whose the room is then does it. It may have been done already.
 */
export function followMissed(
  rooms: Rooms,
  handle: (event: StoredEvent) => Promise<void> | void,
  failed: (error: unknown) => void,
): void {
  const { cluster, events, stream } = rooms.parts;
  if (!cluster.shared) return;
  let takesPart = false;
  let from: number | undefined;
  stream.subscribe(
    () => {},
    (gap) => {
      // What was before this process came is others' matter.
      if (takesPart) from = Math.min(from ?? gap.from, gap.from);
    },
  );
  const look = async (after: number) => {
    for (const event of await events.newsAfter(after, stream.current, MAX_EVENTS))
      if (cluster.owns('room', event.roomId)) await handle(event);
  };
  // Who a dead process's rooms go to is known only then.
  cluster.onHandover({
    take() {
      takesPart = true;
      const after = from;
      from = undefined;
      if (after !== undefined) look(after).catch(failed);
    },
  });
}
