import { randomBytes } from 'node:crypto';
import type { Database, Queryable } from './database.ts';
import { areStored, insertEvents } from './event-rows.ts';
import { type Fence, FencedError } from './fence.ts';
import { indexRelationships } from './relationships.ts';
import { insertSnapshots, type Snapshot, type StateSnapshots } from './state-snapshots.ts';
import type { StoredEvent } from './stored-event.ts';
import { column } from './text-column.ts';
import { DatabaseAwayError } from './unavailable.ts';

export { column };

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

/** SQLSTATEs: two processes that store the same events were in each other's way, and one had to give way. */
const RETRIED = new Set(['40P01', '40001']);
/** Tries to store a batch that gave way, or whose connection was lost and that was found not to be stored. */
const ATTEMPTS = 2;

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
  /** Beside the number of its last batch in `event_writers`. */
  readonly #id = randomBytes(9).toString('base64url');
  #batch = 0;
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
        if (this.#batch === 1) this.#forgetOthers();
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

  /** Stores all of it or nothing, and knows which. */
  async #store(writes: readonly EventWrite[]): Promise<void> {
    const distinct = withoutOvertaken(writes);
    const isOneStatement = writes.every(isPlain) && distinct.length <= this.#batchLimit;
    const batch = ++this.#batch;
    const store = () =>
      isOneStatement
        ? insertEvents(this.#db, distinct, { fence: this.#fenceNow() })
        : this.#storeAll(writes, distinct, batch);
    for (let attempt = 1; ; attempt++)
      try {
        return await store();
      } catch (error) {
        const isInTheWay = RETRIED.has((error as { code?: string }).code ?? '');
        if (error instanceof DatabaseAwayError && error.inDoubt) {
          if (await this.#isStored(error, batch, isOneStatement ? distinct : undefined)) return;
        } else if (!isInTheWay) throw error;
        if (attempt === ATTEMPTS) throw error;
      }
  }

  /**
   * What became of a batch whose connection was lost: an event that is announced must be there, and one that is there
   * must be announced. Waits for the database.
   */
  async #isStored(
    lost: DatabaseAwayError,
    batch: number,
    plain: readonly EventWrite[] | undefined,
  ): Promise<boolean> {
    for (;;) {
      await this.#db.settled(lost);
      try {
        return plain ? await areStored(this.#db, plain) : (await this.#lastStored()) === batch;
      } catch (error) {
        if (!(error instanceof DatabaseAwayError)) throw error;
      }
    }
  }

  async #storeAll(
    writes: readonly EventWrite[],
    distinct: readonly EventWrite[],
    batch: number,
  ): Promise<void> {
    const options = { fence: this.#fenceNow(), mark: { id: this.#id, batch } };
    const snapshots = await this.#snapshots.rowsFor(writes.flatMap((write) => write.snapshots));
    const stateEvents = distinct.filter(({ event }) => event.stateKey !== undefined);
    const threaded = distinct.filter(hasRelationship);
    await this.#db.transaction(async (tx) => {
      // None waits for the answer to the one before, but they are carried out in this order.
      const work: Array<Promise<void> | undefined> = [];
      for (let i = 0; i < distinct.length; i += this.#batchLimit)
        work.push(insertEvents(tx, distinct.slice(i, i + this.#batchLimit), options));
      work.push(
        insertSnapshots(tx, snapshots),
        insertMemberships(tx, writes),
        insertGaps(tx, writes),
        stateEvents.length > 0 ? this.#indexStateEvents(tx, stateEvents) : undefined,
        threaded.length > 0 ? indexRelationships(tx, threaded) : undefined,
        storeAlso(tx, writes),
      );
      await allDone(work);
    });
    snapshots.committed();
  }

  /** With the term that there is when a batch is begun, for all its statements. */
  #fenceNow(): Fence | undefined {
    const era = this.era();
    return this.#fence && { memberId: this.#fence.memberId, term: () => era };
  }

  /** Of processes that have ended long ago. */
  #forgetOthers(): void {
    this.#db.query(`DELETE FROM event_writers WHERE at < now() - interval '30 days'`).catch(() => {});
  }

  async #lastStored(): Promise<number | undefined> {
    const [row] = await this.#db.query<{ batch: number }>('SELECT batch FROM event_writers WHERE id = $1', [
      this.#id,
    ]);
    return row?.batch;
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

/** Throws the first failure once all have ended: nothing may come after the end of the transaction. */
async function allDone(work: ReadonlyArray<Promise<void> | undefined>): Promise<void> {
  for (const outcome of await Promise.allSettled(work))
    if (outcome.status === 'rejected') throw outcome.reason;
}

async function storeAlso(tx: Queryable, writes: readonly EventWrite[]): Promise<void> {
  for (const { also } of writes) await also?.(tx);
}

function insertMemberships(tx: Queryable, writes: readonly EventWrite[]): Promise<void> {
  return upsertMemberships(
    tx,
    writes.flatMap((write) => write.memberships.map((row) => ({ ...row, roomNid: write.roomNid }))),
  );
}

async function insertGaps(tx: Queryable, writes: readonly EventWrite[]): Promise<void> {
  const gaps = writes.flatMap((write) => (write.missing ?? []).map((missing) => ({ write, missing })));
  if (gaps.length === 0) return;
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
