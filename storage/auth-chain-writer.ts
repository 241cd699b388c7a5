import type { Queryable } from './database.ts';

/** A state event as the index of auth chains takes it. */
export interface ChainedEvent {
  readonly nid: number;
  readonly eventId: string;
  readonly type: string;
  readonly stateKey?: string | undefined;
  readonly authEvents: readonly string[];
  /** A rejected event is in nobody's auth chain. */
  readonly rejected?: boolean;
}

interface Place {
  readonly chain: number;
  readonly seq: number;
}

interface Known extends Place {
  readonly type: string;
  readonly stateKey: string | null | undefined;
}

/** What is written at once. */
interface Layout {
  readonly placed: Array<Place & { event: ChainedEvent }>;
  readonly links: Array<{ from: Place; to: Place }>;
  readonly pending: Array<{ event: ChainedEvent; missing: string }>;
}

/**
 * Lays state events out in the index of auth chains, in the transaction that stores them and after they are stored.
 * They may come in any order: those whose auth events are not laid out yet wait for them, and follow when the last
 * one comes. Costs two statements for any number of events.
 */
export async function indexAuthChains(tx: Queryable, events: Iterable<ChainedEvent>): Promise<void> {
  let batch = new Map<string, ChainedEvent>();
  for (const event of events) if (!event.rejected) batch.set(event.eventId, event);
  while (batch.size > 0) {
    const known = await readKnown(tx, batch);
    for (const id of known.places.keys()) batch.delete(id);
    const layout = layOut(batch, known);
    batch = new Map((await write(tx, layout)).map((event) => [event.eventId, event]));
  }
}

class KnownPlaces {
  readonly places = new Map<string, Known>();
  /** The last sequence number of those chains that go on from a known event. */
  readonly tips = new Map<number, number>();
}

/** Places of the events, if they have been laid out before, and of all their auth events. */
async function readKnown(tx: Queryable, batch: ReadonlyMap<string, ChainedEvent>): Promise<KnownPlaces> {
  const ids = new Set(batch.keys());
  for (const event of batch.values()) for (const id of event.authEvents) ids.add(id);
  const rows = await tx.query<Known & { eventId: string; tip: boolean }>(
    {
      name: 'auth-places',
      text: `SELECT e.event_id AS "eventId", e.type, e.state_key AS "stateKey", p.chain, p.seq,
                    NOT EXISTS (SELECT FROM auth_chain_positions n WHERE n.chain = p.chain AND n.seq = p.seq + 1) AS tip
             FROM unnest($1::text[]) AS w(id) JOIN events e ON e.event_id = w.id
               JOIN auth_chain_positions p ON p.event = e.nid`,
    },
    [[...ids]],
  );
  const known = new KnownPlaces();
  for (const row of rows) {
    known.places.set(row.eventId, row);
    if (row.tip) known.tips.set(row.chain, row.seq);
  }
  return known;
}

function layOut(batch: ReadonlyMap<string, ChainedEvent>, known: KnownPlaces): Layout {
  const layout: Layout = { placed: [], links: [], pending: [] };
  const waitsFor = new Map<ChainedEvent, Set<string>>();
  const followers = new Map<string, ChainedEvent[]>();
  const ready: ChainedEvent[] = [];
  for (const event of batch.values()) {
    const missing = new Set(event.authEvents.filter((id) => !known.places.has(id)));
    waitsFor.set(event, missing);
    if (missing.size === 0) ready.push(event);
    for (const id of missing) {
      const others = followers.get(id);
      if (others) others.push(event);
      else followers.set(id, [event]);
    }
  }
  // In the order in which they came, so that those that came first have their pick of the chains.
  for (let i = 0; i < ready.length; i++) {
    const event = ready[i]!;
    place(event, known, layout);
    waitsFor.delete(event);
    for (const follower of followers.get(event.eventId) ?? []) {
      const missing = waitsFor.get(follower);
      if (missing?.delete(event.eventId) && missing.size === 0) ready.push(follower);
    }
  }
  for (const [event, missing] of waitsFor)
    for (const id of missing) layout.pending.push({ event, missing: id });
  return layout;
}

/** Gives an event its place: at the end of the chain of one of its auth events, or at the beginning of its own. */
function place(event: ChainedEvent, { places, tips }: KnownPlaces, layout: Layout): void {
  const auth = event.authEvents.map((id) => places.get(id)!);
  const type = column(event.type);
  const stateKey = column(event.stateKey);
  const before = chainToExtend(
    auth.filter(({ chain, seq }) => tips.get(chain) === seq),
    type,
    stateKey,
  );
  const at = before ? { chain: before.chain, seq: before.seq + 1 } : { chain: event.nid, seq: 1 };
  tips.set(at.chain, at.seq);
  places.set(event.eventId, { ...at, type, stateKey });
  layout.placed.push({ ...at, event });
  const targets = new Map<number, Known>();
  for (const to of auth) {
    // The create event is in the chains of all others anyway.
    if (to.chain === at.chain || (to.type === 'm.room.create' && auth.length > 1)) continue;
    const other = targets.get(to.chain);
    if (!other || other.seq < to.seq) targets.set(to.chain, to);
  }
  for (const to of targets.values()) layout.links.push({ from: at, to });
}

/**
 * Of the auth events whose chain ends with them, the one to go on from. The fewer chains and links there are the
 * better: each member has a chain, and most link to nothing but the one that power levels and join rules share.
 * What authorises nothing itself, such as a topic, would only stop that from going on.
 */
function chainToExtend(
  free: readonly Known[],
  type: string,
  stateKey: string | undefined,
): Known | undefined {
  const same = free.find((other) => other.type === type && other.stateKey === stateKey);
  if (same) return same;
  switch (type) {
    case 'm.room.member':
      return free.find((other) => other.type === 'm.room.create');
    case 'm.room.power_levels':
    case 'm.room.join_rules':
      return free.find((other) => other.type !== 'm.room.member') ?? free[0];
    default:
      return undefined;
  }
}

/** Writes a layout. Returns the events that have waited for one of those placed. */
async function write(tx: Queryable, { placed, links, pending }: Layout): Promise<ChainedEvent[]> {
  return tx.query<ChainedEvent & object>({ name: 'auth-chains-insert', text: INSERT }, [
    placed.map(({ event }) => event.nid),
    placed.map(({ chain }) => chain),
    placed.map(({ seq }) => seq),
    links.map(({ from }) => from.chain),
    links.map(({ from }) => from.seq),
    links.map(({ to }) => to.chain),
    links.map(({ to }) => to.seq),
    pending.map(({ missing }) => missing),
    pending.map(({ event }) => event.nid),
    pending.map(({ event }) => JSON.stringify(event.authEvents)),
    placed.map(({ event }) => event.eventId),
  ]);
}

// A link is left out when an earlier event of the chain has one that goes as far. In one batch two may say the same.
const INSERT = `
  WITH positions AS (
    INSERT INTO auth_chain_positions (event, chain, seq) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::int[])
  ), links AS (
    INSERT INTO auth_chain_links (origin_chain, origin_seq, target_chain, target_seq)
    SELECT * FROM unnest($4::bigint[], $5::int[], $6::bigint[], $7::int[]) AS n(origin, origin_seq, target, target_seq)
    WHERE NOT EXISTS (SELECT FROM auth_chain_links l WHERE l.origin_chain = n.origin AND l.target_chain = n.target
                      AND l.target_seq >= n.target_seq)
  ), pending AS (
    INSERT INTO auth_chain_pending (missing, event, auth_events)
    SELECT missing, event, ARRAY(SELECT json_array_elements_text(auth::json))
    FROM unnest($8::text[], $9::bigint[], $10::text[]) AS w(missing, event, auth)
    ON CONFLICT DO NOTHING
  ), freed AS (
    DELETE FROM auth_chain_pending WHERE missing = ANY($11::text[]) RETURNING event, auth_events
  )
  SELECT DISTINCT ON (e.nid) e.nid, e.event_id AS "eventId", e.type, e.state_key AS "stateKey",
         f.auth_events AS "authEvents"
  FROM freed f JOIN events e ON e.nid = f.event`;

/** As in the columns of `events`, which hold no U+0000. */
function column<T extends string | undefined>(text: T): T {
  return (text?.includes('\0') ? text.replaceAll('\0', '\u2400') : text) as T;
}
