import { setTimeout as sleep } from 'node:timers/promises';
import { type Client, path } from '../client.ts';
import type { Json } from '../json.ts';
import type { Acknowledged } from './load.ts';
import { type ChaosRoom, inLots, type World } from './world.ts';

/** What a room is to those of one server. */
interface View {
  readonly server: number;
  /** By type and state key: the event. */
  readonly state: ReadonlyMap<string, string>;
  readonly events: ReadonlyMap<string, Json>;
}

const TOGETHER = 4;
const PAGE = 500;
const MAX_PAGES = 200;
const BETWEEN_ROUNDS_MS = 2_000;

/**
 * Waits until every server has the same state and the same events in every room, with one more message for each room
 * in each round, as rooms have them.
 *
 * @returns what is still different when the time is over; nothing when all is well
 */
export async function converge(
  world: World,
  acknowledged: readonly Acknowledged[],
  limitMs: number,
): Promise<string[]> {
  const end = performance.now() + limitMs;
  let differences: string[] = [];
  let pending = [...world.rooms];
  for (let round = 0; pending.length > 0; round++) {
    await inLots(pending, TOGETHER, (room) => nudge(room, round));
    await sleep(BETWEEN_ROUNDS_MS);
    const found = await inLots(pending, TOGETHER, (room) => compare(world, room, acknowledged));
    differences = found.flat();
    pending = pending.filter((_, i) => found[i]!.length > 0);
    if (performance.now() > end) break;
  }
  return differences;
}

async function nudge(room: ChaosRoom, round: number): Promise<void> {
  const admins = [...room.admins.values()];
  const { client } = admins[round % admins.length]!;
  await client.sendText(room.id, `all is well again (${round})`);
}

async function compare(
  world: World,
  room: ChaosRoom,
  acknowledged: readonly Acknowledged[],
): Promise<string[]> {
  const readers = await readersOf(world, room);
  const states = await Promise.all(readers.map(({ client }) => stateOf(client, room)));
  const first = states[0]!;
  const label = `${room.id} (version ${room.version})`;
  const different = states.flatMap((state, i) => {
    const keys = new Set([...first.keys(), ...state.keys()]);
    const unlike = [...keys].filter((key) => first.get(key) !== state.get(key));
    return unlike.map(
      (key) =>
        `${label}: ${key} is ${first.get(key)} at ${readers[0]!.server}, ${state.get(key)} at ${readers[i]!.server}`,
    );
  });
  if (different.length > 0) return different;
  const views: View[] = [];
  for (const [i, { client, server }] of readers.entries())
    views.push({ server, state: states[i]!, events: await eventsOf(client, room) });
  const atHome = acknowledged.filter((a) => a.room === room);
  return [...unlikeEvents(world, views), ...lostEvents(views, atHome)].map((what) => `${label}: ${what}`);
}

/** One user of each server that is in the room. */
async function readersOf(world: World, room: ChaosRoom) {
  const readers = [...room.admins.values()];
  const visitors = world.people.filter(({ kind, server }) => kind === 'wanderer' && !room.admins.has(server));
  for (const visitor of visitors) {
    if (readers.some(({ server }) => server === visitor.server)) continue;
    const { joined_rooms: joined } = await visitor.client.get('/v3/joined_rooms');
    if (joined.includes(room.id)) readers.push(visitor);
  }
  return readers;
}

async function stateOf(client: Client, room: ChaosRoom): Promise<Map<string, string>> {
  const state: Json[] = await client.get(path`/v3/rooms/${room.id}/state`);
  return new Map(state.map((e) => [`${e.type} ${e.state_key}`, e.event_id]));
}

async function eventsOf(client: Client, room: ChaosRoom): Promise<Map<string, Json>> {
  const events = new Map<string, Json>();
  let from: string | undefined;
  for (let pages = 0; pages < MAX_PAGES; pages++) {
    const page: Json = await client.get(path`/v3/rooms/${room.id}/messages`, { dir: 'b', from, limit: PAGE });
    for (const event of page.chunk) events.set(event.event_id, event);
    from = page.end;
    if (from === undefined) return events;
  }
  throw new Error(`${room.id} has no beginning at ${client.serverName}`);
}

/** Events that some servers show and others do not, though all of them have to. */
function unlikeEvents(world: World, views: readonly View[]): string[] {
  const all = new Map(views.flatMap(({ events }) => [...events]));
  const kinds = new Map(world.people.map(({ client, kind }) => [client.userId, kind]));
  return [...all].flatMap(([id, event]) => {
    if (mayBeRefused(event, kinds)) return [];
    const without = views.filter(({ events }) => !events.has(id)).map(({ server }) => server);
    return without.length === 0 ? [] : [`${id} (${event.type} of ${event.sender}) is not at ${without}`];
  });
}

/** Whether a server may know of a reason that another did not know of when it took the event. */
function mayBeRefused(event: Json, kinds: ReadonlyMap<string, string>): boolean {
  if (kinds.get(event.sender) === 'wanderer') return true;
  if (event.type === 'm.room.member') return kinds.get(event.state_key) === 'wanderer';
  return event.state_key !== undefined && kinds.get(event.sender) !== 'admin';
}

function lostEvents(views: readonly View[], acknowledged: readonly Acknowledged[]): string[] {
  return acknowledged.flatMap(({ eventId, server, everywhere, what }) => {
    const without = views
      .filter((view) => (everywhere || view.server === server) && !view.events.has(eventId))
      .map((view) => view.server);
    return without.length === 0
      ? []
      : [`${what} ${eventId}, acknowledged by ${server}, is not at ${without}`];
  });
}
