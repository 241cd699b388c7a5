import { setTimeout as sleep } from 'node:timers/promises';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { DeliveryStore, NewsRow } from './delivery-store.ts';

/** An event that was committed but perhaps not delivered. */
export interface Undelivered {
  readonly pos: number;
  readonly roomId: string;
  readonly destinations: readonly string[];
  /** Those of the room that left it with this event. */
  readonly departed: readonly string[];
}

const PAGE = 5_000;
/** Milliseconds, at a time and in all: what fails to be committed is dropped from the room. */
const COMMIT_WAIT = 2;
const COMMIT_LIMIT = 10_000;

/**
 * What happened in the interval (after, upTo], which nothing was written down of when the process ended: some seconds
 * at the most. Which servers were in a room is found by going back from who is in it now.
 */
export async function undelivered(
  store: DeliveryStore,
  rooms: Rooms,
  after: number,
  upTo: number,
): Promise<Undelivered[]> {
  const byRoom = new Map<string, NewsRow[]>();
  for (let from = after; ; ) {
    const page = await store.news(from, upTo, PAGE);
    for (const row of page) {
      const ofRoom = byRoom.get(row.roomId);
      if (ofRoom) ofRoom.push(row);
      else byRoom.set(row.roomId, [row]);
    }
    if (page.length < PAGE) break;
    from = page.at(-1)!.pos;
  }
  const found: Undelivered[] = [];
  for (const [roomId, rows] of byRoom) found.push(...(await inRoom(store, rooms, roomId, rows, upTo)));
  return found.sort((a, b) => a.pos - b.pos);
}

/** A live room is ahead of what is committed, and what is committed may be after `upTo`. */
async function serversAt(
  store: DeliveryStore,
  rooms: Rooms,
  roomId: string,
  upTo: number,
): Promise<Map<string, number> | undefined> {
  const room = await rooms.get(roomId);
  if (!room) return undefined;
  const counts = new Map(room.servers);
  const changed = room.lastMembershipChange;
  if (changed <= upTo) return counts;
  const { stream } = rooms.parts;
  const end = Date.now() + COMMIT_LIMIT;
  while (stream.current < changed && Date.now() < end) await sleep(COMMIT_WAIT);
  for (const { stateKey, json, replacedJson } of (await store.memberNews(roomId, upTo, changed)).toReversed())
    if (stateKey !== null)
      shift(counts, serverNameOf(stateKey), membershipIn(json), membershipIn(replacedJson));
  return counts;
}

async function inRoom(
  store: DeliveryStore,
  rooms: Rooms,
  roomId: string,
  rows: readonly NewsRow[],
  upTo: number,
): Promise<Undelivered[]> {
  const own = rooms.parts.serverName;
  const counts = await serversAt(store, rooms, roomId, upTo);
  if (!counts) return [];
  const found: Undelivered[] = [];
  for (const row of rows.toReversed()) {
    const sender = serverNameOf(row.sender);
    const destinations = new Set(sender === own || row.relayed ? counts.keys() : []);
    const departed: string[] = [];
    if (row.stateKey !== null && row.json !== null) {
      const server = serverNameOf(row.stateKey);
      const before = membershipIn(row.replacedJson);
      const wasIn = counts.has(server);
      shift(counts, server, membershipIn(row.json), before);
      if (!wasIn && counts.has(server) && server !== own) departed.push(server);
      const hears = departed.length > 0 || before === 'invite' || before === 'knock';
      if (hears && (sender === own || row.relayed)) destinations.add(server);
    }
    destinations.delete(own);
    destinations.delete(sender);
    if (destinations.size > 0 || departed.length > 0)
      found.push({ pos: row.pos, roomId, destinations: [...destinations], departed });
  }
  return found;
}

/** Takes back one change of membership. */
function shift(
  counts: Map<string, number>,
  server: string,
  after: string | undefined,
  before: string | undefined,
): void {
  const change = Number(before === 'join') - Number(after === 'join');
  if (change === 0) return;
  const count = (counts.get(server) ?? 0) + change;
  if (count > 0) counts.set(server, count);
  else counts.delete(server);
}

export function membershipIn(json: string | null): string | undefined {
  if (json === null) return undefined;
  const { content } = decodeJson(json) as { content?: JsonObject };
  return typeof content?.membership === 'string' ? content.membership : undefined;
}
