import { authoriseByAuthEvents } from '@trellis/protocol/auth-rules/index.ts';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import { StoredEvent } from '@trellis/storage/stored-event.ts';
import { outlierWrite } from './append.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Outliers stored at a time: how long the room's lock is held, and how many wait in memory for their commit. */
export const CHUNK = 500;

/**
 * Stores checked events of a room without a place in its order: events that authorise others, state from before this
 * server came. Each is authorised by its own `auth_events`, in topological order, and so is accepted or rejected.
 * Events whose auth events are not known, here or among the given ones, are left out, and so are those that these
 * would authorise: an auth chain in the database has no holes.
 *
 * @param absent events that were not here a moment ago, so that they need not be looked for
 * @returns all of the events that are stored now, those known before included
 */
export async function storeOutliers(
  rooms: Rooms,
  room: Room,
  events: readonly RoomEvent[],
  absent?: ReadonlySet<string>,
): Promise<Map<string, StoredEvent>> {
  const { known, fresh } = await judgeOutliers(rooms, room, events, absent);
  const stored = new Map(known);
  for (let i = 0; i < fresh.length; i += CHUNK)
    for (const event of await storeChunk(rooms, room.roomId, fresh.slice(i, i + CHUNK)))
      stored.set(event.eventId, event);
  const given = new Map<string, StoredEvent>();
  for (const { eventId } of events) {
    const event = stored.get(eventId);
    if (event?.roomId === room.roomId) given.set(eventId, event);
  }
  return given;
}

/** Events of a room and those that authorise them, as far as they are known or can be authorised. */
export interface JudgedOutliers {
  /** Those that are here. */
  readonly known: ReadonlyMap<string, StoredEvent>;
  /** Those that are new, auth events before what they authorise. */
  readonly fresh: readonly Judged[];
}

/** What `storeOutliers` would store. */
export async function judgeOutliers(
  rooms: Rooms,
  room: Room,
  events: readonly RoomEvent[],
  absent: ReadonlySet<string> = new Set(),
): Promise<JudgedOutliers> {
  const ofRoom = events.filter((event) => event.roomId === room.roomId);
  const needed = new Set(ofRoom.flatMap((event) => [event.eventId, ...dependencies(event, room.version)]));
  const known = await presentOnes(
    rooms,
    [...needed].filter((id) => !absent.has(id)),
  );
  return { known, fresh: authoriseInOrder(ofRoom, known, room.version) };
}

/** Under the room's lock: numbers the judged events that are not here yet. They are still to be stored. */
export async function numberOutliers(
  rooms: Rooms,
  judged: readonly Judged[],
): Promise<{ known: Map<string, StoredEvent>; fresh: StoredEvent[] }> {
  const { ids } = rooms.parts;
  const known = await presentOnes(
    rooms,
    judged.map(({ eventId }) => eventId),
  );
  const fresh = judged
    .filter(({ eventId }) => !known.has(eventId))
    .map(
      (event) =>
        new StoredEvent(event, {
          nid: ids.next(),
          pos: undefined,
          status: event.rejected ? 'rejected' : 'accepted',
          stateBefore: undefined,
        }),
    );
  return { known, fresh };
}

/**
 * What an event's own auth events say of it (step 4 of the checks on a received PDU): a reason to reject it,
 * `undefined` when they allow it. `known` must hold them, and the create event.
 */
export function rejectionByAuthEvents(
  event: RoomEvent,
  known: ReadonlyMap<string, Judged>,
  version: RoomVersion,
): string | undefined {
  const auth = event.authEvents.map((id) => known.get(id)!);
  const create = version.roomIdIsCreateHash ? known.get(createIdOf(event.roomId)) : undefined;
  return authoriseByAuthEvents(event, auth, version, create);
}

/** Events that have to be known before an event can be authorised: since room version 12 the create event too. */
export function dependencies(event: RoomEvent, version: RoomVersion): string[] {
  if (!version.roomIdIsCreateHash || event.type === 'm.room.create') return [...event.authEvents];
  return [...event.authEvents, createIdOf(event.roomId)];
}

function createIdOf(roomId: string): string {
  return `$${roomId.slice(1)}`;
}

/** An event of which it is known whether it is rejected. */
export type Judged = RoomEvent & { readonly rejected?: boolean };

/** Those of the events that are here. Mostly few are: to look at the ids first costs less. */
async function presentOnes(rooms: Rooms, ids: readonly string[]): Promise<Map<string, StoredEvent>> {
  const { events } = rooms.parts;
  const unread = ids.filter((id) => !events.cached(id));
  const here = unread.length > 0 ? await events.nidsOf(unread) : new Map<string, number>();
  return events.getMany(ids.filter((id) => here.has(id) || events.cached(id)));
}

/** The new ones of the events that can be authorised, auth events before what they authorise. */
function authoriseInOrder(
  events: readonly RoomEvent[],
  known: ReadonlyMap<string, StoredEvent>,
  version: RoomVersion,
): Judged[] {
  const judged = new Map<string, Judged>(known);
  const waiting = new Map<RoomEvent, number>();
  const followers = new Map<string, RoomEvent[]>();
  const ready: RoomEvent[] = [];
  const ids = new Set<string>();
  for (const event of events) {
    if (known.has(event.eventId) || ids.has(event.eventId)) continue;
    ids.add(event.eventId);
    const missing = new Set(dependencies(event, version).filter((id) => !known.has(id)));
    if (missing.size === 0) ready.push(event);
    else waiting.set(event, missing.size);
    for (const id of missing) {
      const others = followers.get(id);
      if (others) others.push(event);
      else followers.set(id, [event]);
    }
  }
  const ordered: Judged[] = [];
  for (let i = 0; i < ready.length; i++) {
    const event = ready[i]!;
    const rejected = rejectionByAuthEvents(event, judged, version) !== undefined;
    const outcome = { ...event, rejected };
    judged.set(event.eventId, outcome);
    ordered.push(outcome);
    for (const follower of followers.get(event.eventId) ?? []) {
      const left = waiting.get(follower)! - 1;
      waiting.set(follower, left);
      if (left === 0) ready.push(follower);
    }
  }
  return ordered;
}

/**
 * Under the room's lock, so that no event is given two numbers; but only for as long as it takes to hand them to the
 * writer.
 */
async function storeChunk(rooms: Rooms, roomId: string, chunk: readonly Judged[]): Promise<StoredEvent[]> {
  const { ids, events, writer } = rooms.parts;
  await ids.ensure(chunk.length);
  const { stored, committed } = await rooms.exclusive(roomId, async (room) => {
    const { known, fresh } = await numberOutliers(rooms, chunk);
    for (const event of fresh) events.remember(event);
    if (fresh.length === 0) return { stored: [...known.values()], committed: Promise.resolve() };
    room.uncommitted++;
    const committed = writer
      .write(fresh.map((event) => outlierWrite(room, event)))
      .catch((error: unknown) => {
        for (const event of fresh) events.forget(event.eventId);
        rooms.drop(room);
        throw error;
      })
      .finally(() => {
        room.uncommitted--;
      });
    committed.catch(() => {});
    return { stored: [...known.values(), ...fresh], committed };
  });
  await committed;
  return stored;
}
