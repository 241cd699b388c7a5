import type { Cluster } from '@trellis/cluster/cluster.ts';
import { Batcher } from '@trellis/storage/batcher.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { ReceiptChange, Stream } from '@trellis/storage/streams.ts';
import { LRUCache } from 'lru-cache';
import { KeyedQueue } from './keyed-queue.ts';
import { ReadThroughCache } from './read-through-cache.ts';
import { type Receipt, RoomReceipts } from './room-receipts.ts';

/** Up to where a user has read a room, by their receipts of either kind, whichever is further on. */
export interface ReadUpTo {
  /** Position of the newest event with an unthreaded receipt; 0 without one. */
  readonly unthreaded: number;
  /** The same for `main` and for roots of threads. */
  readonly threads: ReadonlyMap<string, number>;
}

export type NewReceipt = Omit<Receipt, 'pos'> & { readonly roomId: string };

export interface ReceiptsDeps {
  readonly db: Queryable;
  readonly stream: Stream<ReceiptChange>;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

/** Receipts kept in memory, of all rooms together. */
const MAX_CACHED_RECEIPTS = 500_000;
const MAX_CACHED_USERS = 20_000;
const NOTHING_READ: ReadUpTo = { unthreaded: 0, threads: new Map() };

/** How far users have read (spec: "Receipts"), by room for those who see the receipts, by user for counting. */
export class Receipts {
  readonly #db: Queryable;
  readonly #stream: Stream<ReceiptChange>;
  readonly #queue = new KeyedQueue();
  readonly #shared: boolean;
  readonly #rooms = new LRUCache<string, RoomReceipts>({ maxSize: MAX_CACHED_RECEIPTS });
  readonly #loading = new Map<string, Promise<RoomReceipts>>();
  readonly #readUpTo: ReadThroughCache<Map<string, ReadUpTo>>;
  readonly #writes = new Batcher<NewReceipt & { pos: number }>((receipts) => this.#store(receipts));

  constructor({ db, stream, cluster }: ReceiptsDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#readUpTo = new ReadThroughCache(MAX_CACHED_USERS, (userId) => this.#loadReadUpTo(userId));
    this.#shared = cluster?.shared ?? false;
    cluster?.onGap(() => this.#clear());
    if (!this.#shared) return;
    stream.subscribe(
      (pos, { roomId, eventPos = null, ...receipt }) => this.#apply(roomId, { ...receipt, eventPos, pos }),
      () => this.#clear(),
    );
  }

  /** Stores a receipt, unless it lies behind the one that it would replace. */
  async set(receipt: NewReceipt): Promise<void> {
    const { roomId, userId, eventId, type, threadId, ts, eventPos } = receipt;
    await this.#queue.run(`${roomId} ${userId}`, async () => {
      const current = (await this.#of(roomId)).get(userId, type, threadId);
      if (current && !isAhead(receipt, current)) return;
      await this.#stream.write([{ roomId, userId, eventId, type, threadId, ts, eventPos }], async (pos) => {
        await this.#writes.add({ ...receipt, pos });
        // With other processes all of them, this one too, learn of it by the stream, in one order.
        if (!this.#shared) this.#apply(roomId, { userId, type, threadId, eventId, eventPos, ts, pos });
      });
    });
  }

  /** The content of an `m.receipt` event with what is new in (from, to], all when `from` is undefined. */
  async contentFor(
    roomId: string,
    userId: string,
    from: number | undefined,
    to: number,
  ): Promise<object | undefined> {
    const room = this.#rooms.get(roomId) ?? (await this.#of(roomId));
    return room.contentFor(userId, from, to);
  }

  /** Where a local user has read to; another object whenever that changed. At once when it is in memory. */
  readUpTo(userId: string, roomId: string): ReadUpTo | Promise<ReadUpTo> {
    const rooms = this.#readUpTo.get(userId);
    if (rooms instanceof Promise) return rooms.then((loaded) => loaded?.get(roomId) ?? NOTHING_READ);
    return rooms?.get(roomId) ?? NOTHING_READ;
  }

  /** Waits until everything handed in is stored. */
  idle(): Promise<void> {
    return this.#writes.idle();
  }

  #apply(roomId: string, receipt: Receipt): void {
    // What is being read now may lack this: it is not kept.
    this.#loading.delete(roomId);
    const room = this.#rooms.get(roomId);
    const current = room?.get(receipt.userId, receipt.type, receipt.threadId);
    // Another process may have told of one that is further on, which also the table keeps. What was read from there
    // before it was told is entered again, for those who ask what is new.
    if (current && current.pos !== receipt.pos && !isAhead(receipt, current)) return;
    if (room) {
      const dropped = room.add(receipt);
      this.#rooms.set(roomId, room, { size: room.size + 1 });
      if (dropped) this.#delete(roomId, dropped).catch(() => {});
    }
    const rooms = this.#readUpTo.peek(receipt.userId);
    if (rooms) rooms.set(roomId, advanced(rooms.get(roomId) ?? NOTHING_READ, receipt));
    else this.#readUpTo.drop(receipt.userId);
  }

  #clear(): void {
    this.#rooms.clear();
    this.#loading.clear();
    this.#readUpTo.clear();
  }

  #of(roomId: string): Promise<RoomReceipts> | RoomReceipts {
    const kept = this.#rooms.get(roomId);
    if (kept) return kept;
    let loading = this.#loading.get(roomId);
    if (loading) return loading;
    const forget = () => {
      if (this.#loading.get(roomId) !== loading) return false;
      return this.#loading.delete(roomId);
    };
    loading = this.#load(roomId).then(
      (room) => {
        if (forget()) this.#rooms.set(roomId, room, { size: room.size + 1 });
        return room;
      },
      (error) => {
        forget();
        throw error;
      },
    );
    this.#loading.set(roomId, loading);
    return loading;
  }

  async #load(roomId: string): Promise<RoomReceipts> {
    const now = this.#stream.current;
    const rows = await this.#db.query<Receipt>(
      {
        name: 'receipts-room',
        text: `SELECT user_id AS "userId", type, nullif(thread, '') AS "threadId", event_id AS "eventId",
                      event_pos AS "eventPos", ts, pos
               FROM receipts WHERE room = (SELECT nid FROM rooms WHERE room_id = $1)`,
      },
      [roomId],
    );
    return new RoomReceipts(rows, now);
  }

  async #loadReadUpTo(userId: string): Promise<Map<string, ReadUpTo>> {
    const rows = await this.#db.query<Receipt & { roomId: string }>(
      {
        name: 'receipts-user',
        text: `SELECT r.room_id AS "roomId", nullif(c.thread, '') AS "threadId", c.event_pos AS "eventPos"
               FROM receipts c JOIN rooms r ON r.nid = c.room
               WHERE c.user_id = $1 AND c.event_pos IS NOT NULL`,
      },
      [userId],
    );
    const rooms = new Map<string, ReadUpTo>();
    for (const row of rows) rooms.set(row.roomId, advanced(rooms.get(row.roomId) ?? NOTHING_READ, row));
    return rooms;
  }

  async #store(receipts: ReadonlyArray<NewReceipt & { pos: number }>): Promise<void> {
    await this.#db.query(
      {
        name: 'receipts-upsert',
        text: `INSERT INTO receipts (user_id, room, type, thread, event_id, event_pos, ts, pos)
               SELECT u.user_id, r.nid, u.type, u.thread, u.event_id, u.event_pos, u.ts, u.pos
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                           $8::bigint[]) AS u (user_id, room_id, type, thread, event_id, event_pos, ts, pos)
               JOIN rooms r ON r.room_id = u.room_id
               ON CONFLICT (user_id, room, type, thread) DO UPDATE SET event_id = EXCLUDED.event_id,
                 event_pos = EXCLUDED.event_pos, ts = EXCLUDED.ts, pos = EXCLUDED.pos
               WHERE receipts.event_pos IS NULL OR EXCLUDED.event_pos IS NULL
                 OR EXCLUDED.event_pos > receipts.event_pos`,
      },
      [
        receipts.map(({ userId }) => userId),
        receipts.map(({ roomId }) => roomId),
        receipts.map(({ type }) => type),
        receipts.map(({ threadId }) => threadId ?? ''),
        receipts.map(({ eventId }) => eventId),
        receipts.map(({ eventPos }) => eventPos),
        receipts.map(({ ts }) => ts),
        receipts.map(({ pos }) => pos),
      ],
    );
  }

  async #delete(roomId: string, { userId, type, threadId, pos }: Receipt): Promise<void> {
    await this.#db.query(
      `DELETE FROM receipts WHERE room = (SELECT nid FROM rooms WHERE room_id = $1)
         AND user_id = $2 AND type = $3 AND thread = $4 AND pos = $5`,
      [roomId, userId, type, threadId ?? '', pos],
    );
  }
}

/** Where one of the events is not known here, the receipt that came later counts. */
function isAhead(receipt: Pick<Receipt, 'eventId' | 'eventPos'>, current: Receipt): boolean {
  if (receipt.eventId === current.eventId) return false;
  if (receipt.eventPos === null || current.eventPos === null) return true;
  return receipt.eventPos > current.eventPos;
}

function advanced(read: ReadUpTo, { threadId, eventPos }: Pick<Receipt, 'threadId' | 'eventPos'>): ReadUpTo {
  if (eventPos === null) return read;
  if (threadId === null)
    return eventPos > read.unthreaded ? { unthreaded: eventPos, threads: read.threads } : read;
  if (eventPos <= (read.threads.get(threadId) ?? 0)) return read;
  return { unthreaded: read.unthreaded, threads: new Map(read.threads).set(threadId, eventPos) };
}
