import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { ThreadQuery } from './query.ts';

/** The thread as the one who asks may see it; what they may not see is left out. */
export interface ThreadView {
  parent(event: StoredEvent): Promise<StoredEvent | undefined>;
  /** By their time, as the query orders them. */
  children(event: StoredEvent, limit: number): Promise<StoredEvent[]>;
}

export interface Walked {
  readonly events: StoredEvent[];
  /** There was more, but for the limit. */
  readonly limited: boolean;
}

/**
 * Walks a thread from an event that the asker may see. Every event is visited once, so that circles end (MSC2836:
 * "Server implementation").
 */
export async function walkThread(anchor: StoredEvent, query: ThreadQuery, view: ThreadView): Promise<Walked> {
  const found = new Map([[anchor.eventId, anchor]]);
  let limited = false;
  const add = (event: StoredEvent) => {
    if (found.has(event.eventId)) return;
    if (found.size >= query.limit) limited = true;
    else found.set(event.eventId, event);
  };
  if (query.include_parent) {
    const parent = await view.parent(anchor);
    if (parent) add(parent);
  }
  if (query.include_children) for (const child of await view.children(anchor, query.limit + 1)) add(child);

  const next = async (event: StoredEvent) => {
    if (query.direction === 'down') return view.children(event, query.max_breadth);
    const parent = query.max_breadth > 0 ? await view.parent(event) : undefined;
    return parent ? [parent] : [];
  };
  const visited = new Set<string>();
  const waiting = [{ event: anchor, hops: 0 }];
  for (let step = waiting.shift(); step && !limited; step = waiting.shift()) {
    const { event, hops } = step;
    if (visited.has(event.eventId)) continue;
    visited.add(event.eventId);
    add(event);
    if (limited || hops >= query.max_depth) continue;
    const steps = (await next(event)).map((following) => ({ event: following, hops: hops + 1 }));
    if (query.depth_first) waiting.unshift(...steps);
    else waiting.push(...steps);
  }
  return { events: [...found.values()], limited };
}
