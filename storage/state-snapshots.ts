import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { LRUCache } from 'lru-cache';
import { textArray } from './binary-arrays.ts';
import type { Queryable } from './database.ts';
import { fitIntoHeap } from './heap-share.ts';
import type { IdAllocator } from './id-allocator.ts';

/** An event as state refers to it. */
export interface EventRef {
  readonly eventId: string;
  readonly nid: number;
}

/** Changes of state: `undefined` where a key is gone (only state resolution takes keys away). */
export type StateDelta = ReadonlyMap<string, EventRef | undefined>;

interface Layer {
  readonly id: number;
  readonly roomNid: number;
  readonly base: Layer | undefined;
  readonly entries: StateDelta;
  /** In the database. A layer is written with the first event that refers to it. */
  stored: boolean;
}

/**
 * The state of a room at one point: an immutable chain of layers, newest first, each the changes over its base.
 *
 * A new layer swallows those below it that are not at least twice its size, so the chain stays logarithmic in
 * the size of the state, and what is written for n changes is n log n at the most however often state is
 * snapshotted. Snapshots share their layers, in memory and in the database.
 */
export class Snapshot {
  readonly top: Layer | undefined;

  constructor(top: Layer | undefined) {
    this.top = top;
  }

  static readonly empty = new Snapshot(undefined);

  /** 0 for the empty state. */
  get id(): number {
    return this.top?.id ?? 0;
  }

  get(type: string, stateKey: string): EventRef | undefined {
    return this.getKey(stateKeyOf(type, stateKey));
  }

  getKey(key: string): EventRef | undefined {
    for (let layer = this.top; layer; layer = layer.base) {
      const ref = layer.entries.get(key);
      if (ref !== undefined || layer.entries.has(key)) return ref;
    }
    return undefined;
  }

  *entries(): Generator<[key: string, ref: EventRef]> {
    if (this.top && !this.top.base) {
      for (const [key, ref] of this.top.entries) if (ref) yield [key, ref];
      return;
    }
    const seen = new Set<string>();
    for (let layer = this.top; layer; layer = layer.base) {
      for (const [key, ref] of layer.entries) {
        if (seen.has(key)) continue;
        seen.add(key);
        if (ref) yield [key, ref];
      }
    }
  }

  /**
   * What leads from `before` to this state, by a look at only those layers that the two do not share.
   */
  changesSince(before: Snapshot): Map<string, EventRef | undefined> {
    const shared = new Set<Layer>();
    for (let layer = before.top; layer; layer = layer.base) shared.add(layer);
    const keys = new Set<string>();
    let common: Layer | undefined;
    for (let layer = this.top; layer; layer = layer.base) {
      if (shared.has(layer)) {
        common = layer;
        break;
      }
      for (const key of layer.entries.keys()) keys.add(key);
    }
    for (let layer = before.top; layer && layer !== common; layer = layer.base)
      for (const key of layer.entries.keys()) keys.add(key);
    const changes = new Map<string, EventRef | undefined>();
    for (const key of keys) {
      const now = this.getKey(key);
      if (now?.eventId !== before.getKey(key)?.eventId) changes.set(key, now);
    }
    return changes;
  }

  /** This state with some entries replaced, for reading only: it has no id and can't be stored. */
  overlaid(entries: StateDelta): Snapshot {
    return new Snapshot({ id: -1, roomNid: -1, base: this.top, entries, stored: true });
  }

  /** The state as `protocol/` takes it. */
  toMap(): Map<string, string> {
    const map = new Map<string, string>();
    for (const [key, ref] of this.entries()) map.set(key, ref.eventId);
    return map;
  }
}

/** Columns of `state_snapshots`, arrays as PostgreSQL literals since they differ in length. */
export interface SnapshotRows {
  readonly ids: number[];
  readonly rooms: number[];
  readonly bases: Array<number | null>;
  readonly keys: string[];
  readonly events: string[];
  /** To be called once the rows are committed. */
  committed(): void;
}

const MAX_TRIES = 10;
/** Entries of snapshots that are kept in memory at the most; what one takes, in bytes, and their part of the heap. */
const MAX_ENTRIES = 2_000_000;
const ENTRY_BYTES = 250;
const ENTRIES_SHARE = 0.2;

/** Makes and reads snapshots. */
export class StateSnapshots {
  readonly #db: Queryable;
  readonly #ids: IdAllocator;
  readonly #layers = new LRUCache<number, Layer>({
    maxSize: Math.min(MAX_ENTRIES, fitIntoHeap(ENTRIES_SHARE, ENTRY_BYTES)),
    sizeCalculation: (layer) => layer.entries.size + 1,
  });
  readonly #keyNids = new RecentlyUsed<string, number>(200_000);

  constructor(db: Queryable, ids: IdAllocator) {
    this.#db = db;
    this.#ids = ids;
  }

  /** `base` with `delta` applied. In the database once the event writer has stored its `top`. */
  derive(roomNid: number, base: Snapshot, delta: StateDelta): Snapshot {
    const layer = this.#layerOver(this.#ids.next(), roomNid, base, delta, false);
    this.#layers.set(layer.id, layer);
    return new Snapshot(layer);
  }

  #layerOver(id: number, roomNid: number, base: Snapshot, delta: StateDelta, stored: boolean): Layer {
    let below = base.top;
    let entries = delta;
    while (below && below.entries.size < entries.size * 2) {
      const merged = new Map(below.entries);
      for (const [key, ref] of entries) merged.set(key, ref);
      entries = merged;
      below = below.base;
    }
    if (!below) entries = new Map([...entries].filter(([, ref]) => ref !== undefined));
    return { id, roomNid, base: below, entries, stored };
  }

  /** `base` with `delta` applied, as another process has derived and stored it. */
  adopt(roomNid: number, id: number, base: Snapshot, delta: StateDelta): Snapshot {
    if (id === base.id) return base;
    const known = this.#layers.get(id);
    // One of our own may not be stored yet by what we know, which costs a row that is there.
    if (known) return new Snapshot(known);
    const layer = this.#layerOver(id, roomNid, base, delta, true);
    this.#layers.set(id, layer);
    return new Snapshot(layer);
  }

  /** The snapshot of that id. Throws when the database has none: state must never be made up. */
  async load(id: number): Promise<Snapshot> {
    if (id === 0) return Snapshot.empty;
    const cached = this.#layers.get(id);
    if (cached) return new Snapshot(cached);
    const rows = await this.#db.query<{
      id: number;
      room: number;
      base: number | null;
      keys: string[];
      events: string[];
    }>(
      {
        name: 'state-chain',
        text: `WITH RECURSIVE chain AS (
                 SELECT s.*, 0 AS n FROM state_snapshots s WHERE id = $1
                 UNION ALL
                 SELECT s.*, n + 1 FROM chain c JOIN state_snapshots s ON s.id = c.base
               ) SELECT id, room, base, keys, events FROM chain ORDER BY n DESC`,
      },
      [id],
    );
    if (rows.at(-1)?.id !== id) throw new Error(`state snapshot ${id} is not in the database`);
    const [keys, events] = await Promise.all([
      this.#keysOf(new Set(rows.flatMap((row) => row.keys.map(Number)))),
      this.#eventsOf(new Set(rows.flatMap((row) => row.events.map(Number)))),
    ]);
    let base: Layer | undefined;
    for (const row of rows) {
      const known = this.#layers.get(row.id);
      if (known) {
        base = known;
        continue;
      }
      const entries = new Map<string, EventRef | undefined>();
      row.keys.forEach((key, i) => {
        entries.set(keys.get(Number(key))!, events.get(Number(row.events[i])));
      });
      base = { id: row.id, roomNid: row.room, base, entries, stored: true };
      this.#layers.set(base.id, base);
    }
    return new Snapshot(base);
  }

  /** Stores a snapshot ahead of what refers to it: a large one, which would keep the event writer from other rooms. */
  async store(snapshot: Snapshot): Promise<void> {
    const rows = await this.rowsFor([snapshot]);
    await insertSnapshots(this.#db, rows);
    rows.committed();
  }

  /** Rows of all layers that are not in the database, for the event writer. Interns the state keys that are new. */
  async rowsFor(snapshots: Iterable<Snapshot>): Promise<SnapshotRows> {
    const unstored = new Set<Layer>();
    for (const { top } of snapshots)
      for (let layer = top; layer && !layer.stored && !unstored.has(layer); layer = layer.base)
        unstored.add(layer);
    const layers = [...unstored];
    const keyNids = await this.intern(new Set(layers.flatMap((layer) => [...layer.entries.keys()])));
    return {
      ids: layers.map((layer) => layer.id),
      rooms: layers.map((layer) => layer.roomNid),
      bases: layers.map((layer) => layer.base?.id ?? null),
      keys: layers.map((layer) => `{${[...layer.entries.keys()].map((key) => keyNids.get(key)).join(',')}}`),
      events: layers.map((layer) => `{${[...layer.entries.values()].map((ref) => ref?.nid ?? 0).join(',')}}`),
      committed: () => {
        for (const layer of layers) layer.stored = true;
      },
    };
  }

  /**
   * The nids of state keys, of which those that are new are stored. Whoever is about to store a snapshot may have that
   * done ahead, while they wait for something else.
   *
   * @returns all of them: the cache alone could have dropped one of a very large batch
   */
  async intern(keys: Iterable<string>): Promise<Map<string, number>> {
    const interned = new Map<string, number>();
    const missing: string[] = [];
    for (const key of keys) {
      const nid = this.#keyNids.get(key);
      if (nid === undefined) missing.push(key);
      else interned.set(key, nid);
    }
    // A statement does not see what another has interned since it began; the next does.
    let left = missing.sort();
    for (let tries = 0; left.length > 0; tries++) {
      if (tries === MAX_TRIES) throw new Error(`${left.length} state keys could not be stored`);
      for (const [key, nid] of await this.#internNew(left)) interned.set(key, nid);
      left = left.filter((key) => !interned.has(key));
    }
    return interned;
  }

  /** @param keys in order, so that two statements with the same keys do not wait for each other */
  async #internNew(keys: readonly string[]): Promise<Array<[string, number]>> {
    await this.#ids.ensure(keys.length);
    const rows = await this.#db.query<{ nid: number; key: string }>(
      {
        name: 'state-keys-intern',
        text: `WITH given AS (SELECT * FROM unnest($1::bigint[], $2::text[]) AS g(nid, key)),
               made AS (INSERT INTO state_keys (nid, key) SELECT nid, key FROM given ON CONFLICT (key) DO NOTHING
                        RETURNING nid, key)
               SELECT nid, key FROM made UNION ALL
               SELECT k.nid, k.key FROM state_keys k JOIN given USING (key)`,
      },
      [keys.map(() => this.#ids.next()), textArray(keys.map(encodeKey))],
    );
    return rows.map((row) => {
      const key = decodeKey(row.key);
      this.#keyNids.set(key, row.nid);
      return [key, row.nid];
    });
  }

  async #keysOf(nids: Set<number>): Promise<Map<number, string>> {
    const rows = await this.#db.query<{ nid: number; key: string }>(
      {
        name: 'state-keys-of',
        text: 'SELECT nid, key FROM unnest($1::bigint[]) AS w(nid) JOIN state_keys USING (nid)',
      },
      [[...nids]],
    );
    return new Map(
      rows.map((row) => {
        const key = decodeKey(row.key);
        this.#keyNids.set(key, row.nid);
        return [row.nid, key];
      }),
    );
  }

  async #eventsOf(nids: Set<number>): Promise<Map<number, EventRef>> {
    const rows = await this.#db.query<{ nid: number; eventId: string }>(
      {
        name: 'state-events-of',
        text: 'SELECT nid, event_id AS "eventId" FROM unnest($1::bigint[]) AS w(nid) JOIN events USING (nid)',
      },
      [[...nids]],
    );
    return new Map(rows.map((row) => [row.nid, row]));
  }
}

function encodeKey(key: string): string {
  return JSON.stringify(splitStateKey(key));
}

function decodeKey(text: string): string {
  const [type, stateKey] = JSON.parse(text) as [string, string];
  return stateKeyOf(type, stateKey);
}

export async function insertSnapshots(tx: Queryable, rows: SnapshotRows): Promise<void> {
  if (rows.ids.length === 0) return;
  await tx.query(
    {
      name: 'snapshots-insert',
      text: `INSERT INTO state_snapshots (id, room, base, keys, events)
             SELECT id, room, base, keys::bigint[], events::bigint[]
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[]) AS u(id, room, base, keys, events)
             ON CONFLICT DO NOTHING`,
    },
    [rows.ids, rows.rooms, rows.bases, rows.keys, rows.events],
  );
}
