import { AuthChainLinks, furthest, type Reach } from './auth-chain-links.ts';
import type { Queryable } from './database.ts';

/**
 * Reads auth chains by a cover index: two events are compared by chain and sequence number, and whole stretches of
 * chains are read at once, instead of going from event to event. `auth-chain-writer.ts` writes it. Every state event
 * that is accepted or soft-failed is in it, as its auth events are stored before it.
 */

interface Position {
  readonly nid: number;
  readonly chain: number;
  readonly seq: number;
}

/** A stretch of a chain: after `low` up to and with `high`. */
interface Stretch {
  readonly chain: number;
  readonly low: number;
  readonly high: number;
}

/** The auth chains of events together. The events themselves are in it where one is in the chain of another. */
export async function authChainNids(db: Queryable, nids: readonly number[]): Promise<number[]> {
  const { positions, beside } = await locateDeep(db, nids);
  const chain = await chainOf(db, positions, new Set(nids));
  return [...(await readStretches(db, chain)).map(({ nid }) => nid), ...beside];
}

/** The `m.room.power_levels` events among some events and in their auth chains. */
export async function powerLevelsChainNids(db: Queryable, nids: readonly number[]): Promise<number[]> {
  const chain = await chainOf(db, await locate(db, nids), new Set());
  const rows = await db.query<{ nid: number }>(
    {
      name: 'auth-power-levels',
      text: `SELECT p.event AS nid FROM unnest($1::bigint[], $2::int[], $3::int[]) AS s(chain, low, high)
             JOIN auth_chain_positions p ON p.chain = s.chain AND p.seq > s.low AND p.seq <= s.high
             JOIN events e ON e.nid = p.event WHERE e.type = 'm.room.power_levels'`,
    },
    columnsOf(chain),
  );
  return rows.map(({ nid }) => nid);
}

/** Events that all sets have besides their own. What they reach is looked up only when it matters. */
export interface CommonEvents {
  has(eventId: string): boolean;
  nids(): Promise<readonly number[]>;
}

/**
 * The events that are in some of the sets or their auth chains, but not in all. State resolution calls that the auth
 * difference; the sets count with their chains.
 */
export async function authDifferenceNids(
  db: Queryable,
  sets: ReadonlyArray<readonly number[]>,
  common?: CommonEvents,
): Promise<number[]> {
  const own = new Set(sets.flat());
  const positions = new Map((await locate(db, [...own])).map((position) => [position.nid, position]));
  const links = await AuthChainLinks.load(db, chainsOf(positions.values()));
  const reaches = sets.map((set) => {
    const start = endsOf(set.map((nid) => positions.get(nid)).filter((position) => position !== undefined));
    return furthest(start, links.reachedFrom(start));
  });
  const difference = await readStretches(db, differences(reaches));
  if (!common || difference.length === 0) return difference.map(({ nid }) => nid);

  // Mostly what is left over stands in the common state itself, where everyone's memberships are.
  const floor = await commonFloor(db, difference, common);
  const rest = difference.filter(({ chain, seq }) => seq > (floor.get(chain) ?? 0));
  if (rest.every(({ nid }) => own.has(nid))) return rest.map(({ nid }) => nid);
  const shared = await locate(db, await common.nids());
  const ends = endsOf(shared);
  const reach = furthest(ends, (await AuthChainLinks.load(db, ends.keys())).reachedFrom(ends));
  return rest.filter(({ chain, seq }) => seq > (reach.get(chain) ?? 0)).map(({ nid }) => nid);
}

/** All events on paths along `auth_events` between two of the given, these included (MSC4297). */
export async function conflictedSubgraphNids(db: Queryable, nids: readonly number[]): Promise<number[]> {
  const positions = await locate(db, nids);
  const ends = endsOf(positions);
  const links = await AuthChainLinks.load(db, ends.keys());
  const reach = furthest(ends, links.reachedFrom(ends));
  const first: Reach = new Map();
  for (const { chain, seq } of positions) first.set(chain, Math.min(seq, first.get(chain) ?? seq));
  const stretches: Stretch[] = [];
  for (const [chain, from] of links.reaching(first, reach))
    stretches.push({ chain, low: from - 1, high: reach.get(chain) ?? 0 });
  return (await readStretches(db, stretches)).map(({ nid }) => nid);
}

/** What the common events reach directly of the chains in question: those of them that are in the difference. */
async function commonFloor(
  db: Queryable,
  difference: readonly Position[],
  common: CommonEvents,
): Promise<Reach> {
  const rows = await db.query<{ nid: number; event_id: string }>(
    {
      name: 'event-ids',
      text: `SELECT e.nid, event_id FROM (SELECT DISTINCT nid FROM unnest($1::bigint[]) AS u(nid)) AS w
             JOIN events e ON e.nid = w.nid`,
    },
    [difference.map(({ nid }) => nid)],
  );
  const shared = new Set(rows.filter((row) => common.has(row.event_id)).map((row) => row.nid));
  return endsOf(difference.filter(({ nid }) => shared.has(nid)));
}

async function chainOf(
  db: Queryable,
  positions: readonly Position[],
  without: ReadonlySet<number>,
): Promise<Stretch[]> {
  const links = await AuthChainLinks.load(db, chainsOf(positions));
  const before = positions.map((position) =>
    without.has(position.nid) ? { ...position, seq: position.seq - 1 } : position,
  );
  const reach = furthest(endsOf(before), links.reachedFrom(endsOf(positions)));
  return [...reach].map(([chain, high]) => ({ chain, low: 0, high }));
}

async function locate(db: Queryable, nids: readonly number[]): Promise<Position[]> {
  if (nids.length === 0) return [];
  return db.query<Position & object>(
    {
      name: 'auth-positions',
      text: `SELECT event AS nid, chain, seq FROM (SELECT DISTINCT nid FROM unnest($1::bigint[]) AS u(nid)) AS w
             JOIN auth_chain_positions p ON p.event = w.nid`,
    },
    [nids],
  );
}

/**
 * Positions of events, and in place of those that wait for their auth events, of the auth events that are there.
 *
 * @returns besides, what was come across on the way and has no position
 */
async function locateDeep(
  db: Queryable,
  nids: readonly number[],
): Promise<{ positions: Position[]; beside: number[] }> {
  const positions: Position[] = [];
  const seen = new Set(nids);
  const beside: number[] = [];
  let wanted = nids;
  while (wanted.length > 0) {
    const located = await locate(db, wanted);
    positions.push(...located);
    const found = new Set(located.map(({ nid }) => nid));
    const pending = wanted.filter((nid) => !found.has(nid));
    if (pending.length === 0) break;
    if (wanted !== nids) beside.push(...pending);
    const rows = await db.query<{ nid: number }>(
      {
        name: 'auth-of-pending',
        text: `SELECT DISTINCT e.nid FROM auth_chain_pending p
               JOIN events e ON e.event_id = ANY(p.auth_events) WHERE p.event = ANY($1::bigint[])`,
      },
      [pending],
    );
    wanted = rows.map(({ nid }) => nid).filter((nid) => !seen.has(nid));
    for (const nid of wanted) seen.add(nid);
  }
  return { positions, beside };
}

async function readStretches(db: Queryable, stretches: readonly Stretch[]): Promise<Position[]> {
  if (stretches.length === 0) return [];
  return db.query<Position & object>(
    {
      name: 'auth-stretches',
      text: `SELECT p.event AS nid, p.chain, p.seq FROM unnest($1::bigint[], $2::int[], $3::int[]) AS s(chain, low, high)
             JOIN auth_chain_positions p ON p.chain = s.chain AND p.seq > s.low AND p.seq <= s.high`,
    },
    columnsOf(stretches),
  );
}

function columnsOf(stretches: readonly Stretch[]): number[][] {
  return [
    stretches.map(({ chain }) => chain),
    stretches.map(({ low }) => low),
    stretches.map(({ high }) => high),
  ];
}

/** The stretches that some of the sets reach and others not. */
function differences(reaches: readonly Reach[]): Stretch[] {
  const stretches: Stretch[] = [];
  for (const [chain, high] of furthest(...reaches)) {
    const low = Math.min(...reaches.map((reach) => reach.get(chain) ?? 0));
    if (low < high) stretches.push({ chain, low, high });
  }
  return stretches;
}

function endsOf(positions: Iterable<Position>): Reach {
  const ends: Reach = new Map();
  for (const { chain, seq } of positions) if (seq > (ends.get(chain) ?? 0)) ends.set(chain, seq);
  return ends;
}

function chainsOf(positions: Iterable<Position>): Set<number> {
  return new Set([...positions].map(({ chain }) => chain));
}
