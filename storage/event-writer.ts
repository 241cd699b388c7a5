import type { Database, Queryable } from './database.ts';
import { STATUS_CODES } from './events.ts';
import { type Fence, FencedError, fenced } from './fence.ts';
import { indexRelationships } from './relationships.ts';
import { insertSnapshots, type Snapshot, type SnapshotRows, type StateSnapshots } from './state-snapshots.ts';
import type { StoredEvent } from './stored-event.ts';

/** A membership to be stored: of the current state, or of a local user in a room that this server is not in. */
export interface MembershipRow {
  readonly userId: string;
  readonly membership: string;
  readonly eventId: string;
  readonly sender: string;
  readonly pos: number;
  readonly strippedState: string | null;
}

export interface RelationRow {
  readonly target: string;
  readonly relType: string;
  readonly aggregationKey: string | null;
}

/** Everything that becomes true together when an event is stored. */
export interface EventWrite {
  readonly roomNid: number;
  readonly event: StoredEvent;
  /** Snapshots that the event or the room refers to; those in the database already cost nothing. */
  readonly snapshots: readonly Snapshot[];
  /** The room after the event. Left out where it does not change: outliers, rejected and backfilled events. */
  readonly room?: { readonly extremities: readonly string[]; readonly state: number; readonly depth: number };
  readonly memberships: readonly MembershipRow[];
  readonly relation?: RelationRow;
  /** Predecessors that are not here. */
  readonly missing?: readonly string[];
  /** Runs in the same transaction: for what has to be true together with the event. */
  readonly also?: (tx: Queryable) => Promise<void>;
}

/** One call of `write`: stored as a whole or not at all. */
interface Call {
  readonly writes: readonly EventWrite[];
  readonly era: number;
  readonly done: PromiseWithResolvers<void>;
}

/** Called within the transaction for all state events of a batch: keeps the auth-chain index. */
export type IndexStateEvents = (
  tx: Queryable,
  events: ReadonlyArray<{ roomNid: number; event: StoredEvent }>,
) => Promise<void>;

/**
 * Stores events by group commit. When nothing is being stored, a write goes out at once; what arrives meanwhile
 * goes together in the next batch. One batch is under way at a time, so positions are committed in their order.
 */
export class EventWriter {
  readonly #db: Database;
  readonly #snapshots: StateSnapshots;
  readonly #indexStateEvents: IndexStateEvents;
  readonly #fence: Fence | undefined;
  #waiting: Call[] = [];
  #running: Promise<void> | undefined;
  /** Events in one statement at the most: bounds memory and how long others wait. */
  readonly #batchLimit = 500;

  /** @param fence with several processes: nothing is stored once this one is shut out */
  constructor(db: Database, snapshots: StateSnapshots, indexStateEvents: IndexStateEvents, fence?: Fence) {
    this.#db = db;
    this.#snapshots = snapshots;
    this.#indexStateEvents = indexStateEvents;
    this.#fence = fence;
  }

  /**
   * Stores the writes, all of one room, together and in order, and resolves once committed. When it throws, none of them is
   * stored, and neither is anything that was handed in later for the same rooms, as that builds on these. Throws
   * `FencedError` when this process was shut out.
   */
  write(writes: readonly EventWrite[]): Promise<void> {
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ writes, era: this.era(), done });
    this.#running ??= this.#run();
    return done.promise;
  }

  /**
   * Changes when the processes have agreed anew who gives positions: what was given before is void then, and nothing is
   * stored any more that was handed in before.
   */
  era(): number {
    return this.#fence?.term() ?? 0;
  }

  /** Waits until everything handed in is stored or has failed. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running;
  }

  async #run(): Promise<void> {
    // Gives those who are about to write in this turn of the event loop the chance to come along.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const calls = this.#waiting;
      this.#waiting = [];
      try {
        if (calls.some(({ era }) => era !== this.era()))
          throw new FencedError('The processes have agreed anew');
        await this.#store(calls.flatMap((call) => call.writes));
        for (const { done } of calls) done.resolve();
      } catch (error) {
        await this.#storeByRoom(calls, error);
      }
    }
    this.#running = undefined;
  }

  /** After a batch failed: one room's bad write must not fail another room's. */
  async #storeByRoom(calls: readonly Call[], error: unknown): Promise<void> {
    const byRoom = Map.groupBy(calls, (call) => call.writes[0]?.roomNid);
    const alone = byRoom.size === 1 || error instanceof FencedError;
    for (const [roomNid, ofRoom] of byRoom) {
      let failure = error;
      if (!alone)
        try {
          await this.#store(ofRoom.flatMap((call) => call.writes));
          for (const { done } of ofRoom) done.resolve();
          continue;
        } catch (again) {
          failure = again;
        }
      const later = this.#waiting.filter((call) => call.writes[0]?.roomNid === roomNid);
      this.#waiting = this.#waiting.filter((call) => call.writes[0]?.roomNid !== roomNid);
      for (const { done } of [...ofRoom, ...later]) done.reject(failure);
    }
  }

  async #store(writes: readonly EventWrite[]): Promise<void> {
    const plain = writes.every(isPlain);
    const distinct = withoutOvertaken(writes);
    const era = this.era();
    const fence = this.#fence && { memberId: this.#fence.memberId, term: () => era };
    if (plain && distinct.length <= this.#batchLimit) return insertPlain(this.#db, distinct, fence);
    const snapshots = await this.#snapshots.rowsFor(writes.flatMap((write) => write.snapshots));
    await this.#db.transaction(async (tx) => {
      for (let i = 0; i < distinct.length; i += this.#batchLimit)
        await insertPlain(tx, distinct.slice(i, i + this.#batchLimit), fence);
      await insertState(tx, writes, snapshots);
      const stateEvents = distinct.filter(({ event }) => event.stateKey !== undefined);
      if (stateEvents.length > 0) await this.#indexStateEvents(tx, stateEvents);
      const threaded = distinct.filter(hasRelationship);
      if (threaded.length > 0) await indexRelationships(tx, threaded);
      for (const { also } of writes) await also?.(tx);
    });
    snapshots.committed();
  }
}

/** Nothing but an event and its room's row: one statement stores any number of these. */
function isPlain(write: EventWrite): boolean {
  return (
    write.event.stateKey === undefined &&
    write.snapshots.every((snapshot) => snapshot.top === undefined || snapshot.top.stored) &&
    write.memberships.length === 0 &&
    write.missing === undefined &&
    write.also === undefined &&
    !hasRelationship(write)
  );
}

/** Few events have one (MSC2836). */
function hasRelationship({ event }: EventWrite): boolean {
  return event.status === 'accepted' && event.content['m.relationship'] !== undefined;
}

/**
 * An outlier on its way into the database may get its place by a write of the same batch; no statement stores an event
 * twice. The later write says all.
 */
function withoutOvertaken(writes: readonly EventWrite[]): readonly EventWrite[] {
  if (writes.every(({ event }) => event.pos !== undefined)) return writes;
  return [...new Map(writes.map((write) => [write.event.eventId, write])).values()];
}

async function insertPlain(
  target: Queryable,
  writes: readonly EventWrite[],
  fence: Fence | undefined,
): Promise<void> {
  const events = writes.map((write) => write.event);
  // Only a room's last write of the batch decides its row.
  const rooms = new Map<number, NonNullable<EventWrite['room']>>();
  for (const write of writes) if (write.room) rooms.set(write.roomNid, write.room);
  const related = writes.filter((write) => write.relation !== undefined);
  const params = [
    events.map((event) => event.nid),
    events.map((event) => event.eventId),
    writes.map((write) => write.roomNid),
    events.map((event) => event.pos ?? null),
    events.map((event) => event.backfilled),
    events.map((event) => STATUS_CODES[event.status]),
    events.map((event) => event.stateBefore ?? null),
    events.map((event) => (event.roomStateBefore === event.stateBefore ? null : event.roomStateBefore)),
    events.map((event) => event.depth),
    events.map((event) => event.originServerTs),
    events.map((event) => event.sender),
    events.map((event) => column(event.type)),
    events.map((event) => (event.stateKey === undefined ? null : column(event.stateKey))),
    events.map((event) => event.replaces?.eventId ?? null),
    events.map((event) => event.transaction?.deviceId ?? null),
    events.map((event) => event.transaction?.txnId ?? null),
    events.map((event) => event.json),
    [...rooms.keys()],
    [...rooms.values()].map((room) => textArray(room.extremities)),
    [...rooms.values()].map((room) => room.state),
    [...rooms.values()].map((room) => room.depth),
    related.map((write) => write.roomNid),
    related.map((write) => column(write.relation!.target)),
    related.map((write) => write.event.eventId),
    related.map((write) => write.event.pos ?? 0),
    related.map((write) => column(write.relation!.relType)),
    related.map((write) => column(write.event.type)),
    related.map((write) => write.event.sender),
    related.map((write) =>
      write.relation!.aggregationKey === null ? null : column(write.relation!.aggregationKey),
    ),
  ];
  if (!fence) await target.query({ name: 'events-insert', text: INSERT_EVENTS }, params);
  else
    await fenced(
      target.query({ name: 'events-insert-fenced', text: INSERT_EVENTS_FENCED }, [
        ...params,
        fence.memberId,
        fence.term(),
      ]),
    );
}

const insertEvents = (condition: string) => `
  WITH room AS (
    UPDATE rooms SET extremities = u.extremities::text[], state = u.state, depth = u.depth
    FROM unnest($18::bigint[], $19::text[], $20::bigint[], $21::bigint[]) AS u(nid, extremities, state, depth)
    WHERE rooms.nid = u.nid
  ), relation AS (
    INSERT INTO relations (room, target, event_id, pos, rel_type, type, sender, aggregation_key)
    SELECT * FROM unnest($22::bigint[], $23::text[], $24::text[], $25::bigint[], $26::text[], $27::text[], $28::text[], $29::text[])
    ON CONFLICT DO NOTHING
  )
  INSERT INTO events (nid, event_id, room, pos, backfilled, status, state_before, room_state_before, depth, origin_server_ts,
                      sender, type, state_key, replaces, txn_device, txn_id, json)
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[], $6::smallint[], $7::bigint[],
                       $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
                       $16::text[], $17::text[]) ${condition}
  ON CONFLICT (event_id) DO UPDATE SET pos = EXCLUDED.pos, backfilled = EXCLUDED.backfilled, status = EXCLUDED.status,
    state_before = EXCLUDED.state_before, room_state_before = EXCLUDED.room_state_before, replaces = EXCLUDED.replaces
  WHERE events.pos IS NULL AND EXCLUDED.pos IS NOT NULL`;

// An event that is known as an outlier gets its place and keeps its nid, which state refers to.
const INSERT_EVENTS = insertEvents('');

// Asked for once, before the first row, in the same round trip.
const INSERT_EVENTS_FENCED = insertEvents('WHERE (SELECT require_member($30, $31))');

async function insertState(
  tx: Queryable,
  writes: readonly EventWrite[],
  snapshots: SnapshotRows,
): Promise<void> {
  await insertSnapshots(tx, snapshots);
  await upsertMemberships(
    tx,
    writes.flatMap((write) => write.memberships.map((row) => ({ ...row, roomNid: write.roomNid }))),
  );
  const gaps = writes.flatMap((write) => (write.missing ?? []).map((missing) => ({ write, missing })));
  if (gaps.length > 0)
    await tx.query(
      {
        name: 'gaps-insert',
        text: `INSERT INTO backward_extremities (room, event_id, successor, pos)
               SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) ON CONFLICT DO NOTHING`,
      },
      [
        gaps.map(({ write }) => write.roomNid),
        gaps.map(({ missing }) => missing),
        gaps.map(({ write }) => write.event.eventId),
        gaps.map(({ write }) => write.event.pos ?? 0),
      ],
    );
}

/** Stores memberships; of several for a user and room the last one counts. */
export async function upsertMemberships(
  tx: Queryable,
  rows: ReadonlyArray<MembershipRow & { roomNid: number }>,
): Promise<void> {
  if (rows.length === 0) return;
  const last = [...new Map(rows.map((row) => [`${row.roomNid} ${row.userId}`, row])).values()];
  await tx.query(
    {
      name: 'members-upsert',
      text: `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos, stripped_state)
             SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
             ON CONFLICT (user_id, room) DO UPDATE SET membership = EXCLUDED.membership, event_id = EXCLUDED.event_id,
               sender = EXCLUDED.sender, pos = EXCLUDED.pos, stripped_state = EXCLUDED.stripped_state,
               forgotten = false`,
    },
    [
      last.map((row) => row.userId),
      last.map((row) => row.roomNid),
      last.map((row) => column(row.membership)),
      last.map((row) => row.eventId),
      last.map((row) => row.sender),
      last.map((row) => row.pos),
      last.map((row) => row.strippedState),
    ],
  );
}

/** PostgreSQL's text holds no U+0000. Columns beside the JSON serve look-ups only, where the symbol for it will do. */
export function column(text: string): string {
  return text.includes('\0') ? text.replaceAll('\0', '\u2400') : text;
}

/** A text[] literal: arrays of arrays of different lengths can't be passed otherwise. */
function textArray(items: readonly string[]): string {
  return `{${items.map((item) => `"${item.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;
}
