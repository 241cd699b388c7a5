import type { Client } from '../client.ts';
import type { Json } from '../json.ts';
import type { TestServer } from '../server.ts';
import type { Random } from './random.ts';

/**
 * Admins and steady users stay in their rooms, and nobody touches the admins: what they do is allowed everywhere at
 * any time. Wanderers come, go and are thrown out, so servers may well differ on what they were still allowed to do.
 */
export interface Person {
  readonly client: Client;
  readonly server: number;
  readonly kind: 'admin' | 'steady' | 'wanderer';
}

export interface ChaosRoom {
  readonly id: string;
  readonly version: string;
  /** By server: those that are in the room from beginning to end. */
  readonly admins: ReadonlyMap<number, Person>;
  readonly steady: ReadonlyMap<number, Person>;
  /** People are thrown out, and levels and join rules change. */
  readonly isStormy: boolean;
}

export interface World {
  readonly servers: readonly TestServer[];
  readonly people: readonly Person[];
  readonly rooms: readonly ChaosRoom[];
}

const VERSIONS = ['6', '9', '10', '11', '12'];
const WANDERERS = 2;
const MADE_TOGETHER = 6;

export async function makeWorld(
  random: Random,
  servers: readonly TestServer[],
  rooms: number,
): Promise<World> {
  const people = (await inLots(servers, MADE_TOGETHER, register)).flat();
  const made = await inLots(
    Array.from({ length: rooms }, (_, i) => i),
    MADE_TOGETHER,
    (i) => makeRoom(random.for(`room ${i}`), people, servers.length),
  );
  return { servers, people, rooms: made };
}

async function register(server: TestServer, index: number): Promise<Person[]> {
  const make = async (localpart: string, kind: Person['kind']) => ({
    client: await server.register(localpart),
    server: index,
    kind,
  });
  return Promise.all([
    make(`admin${index}`, 'admin'),
    make(`steady${index}`, 'steady'),
    ...Array.from({ length: WANDERERS }, (_, i) => make(`wanderer${index}-${i}`, 'wanderer')),
  ]);
}

async function makeRoom(random: Random, people: readonly Person[], count: number): Promise<ChaosRoom> {
  const servers = random.some([...Array(count).keys()], random.whole(Math.min(3, count), count));
  const version = random.pick(VERSIONS);
  const of = (kind: Person['kind']) =>
    new Map(servers.map((server) => [server, people.find((p) => p.server === server && p.kind === kind)!]));
  const admins = of('admin');
  const steady = of('steady');
  const [creator, ...others] = admins.values();
  // The creator of a room of version 12 is above all levels and named in none.
  const named = version === '12' ? others : [creator!, ...others];
  const users = Object.fromEntries(named.map(({ client }) => [client.userId, 100]));
  const id = await creator!.client.createRoom({
    preset: 'public_chat',
    room_version: version,
    power_level_content_override: { users },
  } satisfies Json);
  for (const { client, server } of [...others, ...steady.values()])
    await client.join(id, server === creator!.server ? undefined : creator!.client.serverName);
  return { id, version, admins, steady, isStormy: random.next() < 0.6 };
}

/** Works on a list, so many at a time. */
export async function inLots<T, R>(
  list: readonly T[],
  size: number,
  work: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results: R[] = Array(list.length);
  let next = 0;
  const worker = async () => {
    while (next < list.length) {
      const index = next++;
      results[index] = await work(list[index]!, index);
    }
  };
  await Promise.all(Array.from({ length: Math.min(size, list.length) }, worker));
  return results;
}
