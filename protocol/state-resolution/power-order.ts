import type { AuthView } from '../event.ts';
import { powerLevels } from '../power-levels.ts';
import type { RoomVersion } from '../room-versions.ts';
import { authEventIds, powerLevelsOf } from './needs.ts';

interface Context {
  readonly known: ReadonlyMap<string, AuthView>;
  readonly create: AuthView | undefined;
  readonly version: RoomVersion;
}

interface Node {
  readonly event: AuthView;
  readonly power: number;
  /** Auth events in the graph that have not had their turn yet. */
  waitsFor: number;
  readonly followers: Node[];
}

/**
 * The reverse topological power ordering: auth events before what they authorise, else the more powerful sender,
 * then the earlier, then the smaller id first. Events on or behind a cycle, which no honest graph has, are left out.
 */
export function powerOrder(events: Iterable<AuthView>, context: Context): AuthView[] {
  const nodes = new Map<string, Node>();
  for (const event of events)
    nodes.set(event.eventId, { event, power: senderPower(event, context), waitsFor: 0, followers: [] });
  const ready: Node[] = [];
  for (const node of nodes.values()) {
    for (const id of new Set(authEventIds(node.event))) {
      const auth = nodes.get(id);
      if (!auth) continue;
      auth.followers.push(node);
      node.waitsFor++;
    }
  }
  for (const node of nodes.values()) if (node.waitsFor === 0) push(ready, node);
  const ordered: AuthView[] = [];
  for (let node = pop(ready); node; node = pop(ready)) {
    ordered.push(node.event);
    for (const follower of node.followers) if (--follower.waitsFor === 0) push(ready, follower);
  }
  return ordered;
}

/** The power level of the sender by the event's own auth events. */
function senderPower(event: AuthView, { known, create, version }: Context): number {
  const root =
    create ??
    authEventIds(event)
      .map((id) => known.get(id))
      .find((auth) => auth?.type === 'm.room.create' && auth.stateKey === '');
  const levels = powerLevelsOf(event, known);
  return powerLevels(levels?.content, root ?? NO_CREATE, version).user(event.sender);
}

/** Stands in where the create event is missing: nobody has made the room. */
const NO_CREATE = { sender: '', content: {} };

function isBefore(a: Node, b: Node): boolean {
  if (a.power !== b.power) return a.power > b.power;
  return isEarlier(a.event, b.event);
}

export function isEarlier(a: AuthView, b: AuthView): boolean {
  if (a.originServerTs !== b.originServerTs) return a.originServerTs < b.originServerTs;
  return a.eventId < b.eventId;
}

/** A binary heap with the smallest node at the top. */
function push(heap: Node[], node: Node): void {
  let at = heap.length;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!isBefore(node, heap[parent]!)) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = node;
}

function pop(heap: Node[]): Node | undefined {
  const top = heap[0];
  const last = heap.pop();
  if (!top || !last || heap.length === 0) return top;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
    if (!isBefore(heap[child]!, last)) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
  return top;
}
