import type { Aggregation, Relations } from '@trellis/rooms/relations.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { endOfLastStay, visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { eventJson } from './event-json.ts';

export interface AggregationDeps {
  readonly rooms: Rooms;
  readonly relations: Relations;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

/** Makes `unsigned.m.relations` of events for a user, as JSON text by event id. */
export type AggregateRelations = (
  events: readonly StoredEvent[],
  userId: string,
) => Promise<ReadonlyMap<string, string>>;

/** Sums up what relates to events, for one user (spec: "Aggregations of child events"). */
export function aggregateRelations(deps: AggregationDeps): AggregateRelations {
  return async (events, userId) => {
    const json = new Map<string, string>();
    const wanted = events.filter((event) => event.stateKey === undefined && event.hasRelations !== false);
    for (const [roomId, ofRoom] of Map.groupBy(wanted, (event) => event.roomId)) {
      const room = await deps.rooms.get(roomId);
      if (room) await addOfRoom(deps, room, ofRoom, userId, json, true);
    }
    return json;
  };
}

async function addOfRoom(
  deps: AggregationDeps,
  room: Room,
  events: readonly StoredEvent[],
  userId: string,
  json: Map<string, string>,
  withLatest: boolean,
): Promise<void> {
  const { rooms, relations } = deps;
  const left = await endOfLastStay(rooms, room, userId);
  const ignored = await deps.ignoredUsers(userId);
  const aggregated = await relations.aggregate(room, events, {
    userId,
    ignored,
    end: left?.pos ?? Number.POSITIVE_INFINITY,
  });
  if (aggregated.size === 0) return;
  const bundled = await bundledEvents(rooms, room, aggregated, userId);
  const latest = [...aggregated.values()].flatMap(({ thread }) => bundled.get(thread?.latest ?? '') ?? []);
  // What relates to a thread's latest event stands with it; no deeper than that.
  const inner = new Map<string, string>();
  if (withLatest && latest.length > 0) await addOfRoom(deps, room, latest, userId, inner, false);
  const now = Date.now();
  const written = (event: StoredEvent) =>
    eventJson(event, { userId, deviceId: undefined, relations: inner, now });
  for (const [eventId, aggregation] of aggregated) {
    const parts = aggregationParts(aggregation, bundled, written);
    if (parts.length > 0) json.set(eventId, `{${parts.join(',')}}`);
  }
}

function aggregationParts(
  { thread, replacement, references }: Aggregation,
  bundled: ReadonlyMap<string, StoredEvent>,
  written: (event: StoredEvent) => string,
): string[] {
  const parts: string[] = [];
  const latest = thread && bundled.get(thread.latest);
  if (latest)
    parts.push(
      `"m.thread":{"latest_event":${written(latest)},"count":${thread.count}` +
        `,"current_user_participated":${thread.participated}}`,
    );
  const edit = replacement === undefined ? undefined : bundled.get(replacement);
  if (edit) parts.push(`"m.replace":${written(edit)}`);
  if (references)
    parts.push(`"m.reference":${JSON.stringify({ chunk: references.map((event_id) => ({ event_id })) })}`);
  return parts;
}

/** The events that aggregations show whole, as far as the user may see them. */
async function bundledEvents(
  rooms: Rooms,
  room: Room,
  aggregated: ReadonlyMap<string, Aggregation>,
  userId: string,
): Promise<Map<string, StoredEvent>> {
  const ids = [...aggregated.values()].flatMap(({ thread, replacement }) => [
    ...(thread ? [thread.latest] : []),
    ...(replacement === undefined ? [] : [replacement]),
  ]);
  const events = await rooms.parts.events.getMany(ids);
  const visible = await visibleEvents(rooms, room, userId, [...events.values()]);
  return new Map(visible.map((event) => [event.eventId, event]));
}
