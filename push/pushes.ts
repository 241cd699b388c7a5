import type { Cluster, Duty } from '@trellis/cluster/cluster.ts';
import { DutyMarks, type Marks, TakenUpError } from '@trellis/cluster/duty-marks.ts';
import { Takeover } from '@trellis/cluster/takeover.ts';
import type { EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { ReceiptChange, Stream } from '@trellis/storage/streams.ts';
import type { Badges } from './badges.ts';
import type { Candidates } from './candidates.ts';
import type { Delivery, HttpDelivery } from './http-delivery.ts';
import { Lanes } from './lanes.ts';
import type { MailDelivery } from './mail-delivery.ts';
import { PushUsers } from './push-users.ts';
import type { PusherQueue } from './pusher-queue.ts';
import type { PusherTable } from './pusher-table.ts';

export interface PushesDeps {
  readonly cluster: Cluster;
  readonly rooms: Rooms;
  readonly receipts: Stream<ReceiptChange>;
  readonly table: PusherTable;
  readonly candidates: Candidates;
  readonly badges: Badges;
  readonly http: HttpDelivery;
  /** `undefined`: this server sends no mail. */
  readonly mail: MailDelivery | undefined;
  readonly log: {
    warn(details: object, message: string): void;
    info(details: object, message: string): void;
  };
}

/** Deliveries at a time, and of those the ones to one gateway. */
const WIDTH = 64;
const GATEWAY_WIDTH = 16;
/** Gateways that failed lately are asked beside the others. */
const FAILING_WIDTH = 16;
const AFTER_OWN_ERROR_MS = 5_000;
const PROGRESS_INTERVAL_MS = 10_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;
/** What is in flight when the server stops has that long to be answered. */
const CLOSE_WAIT_MS = 3_000;
/** The same when another process takes over, while nobody tells. */
const RELEASE_WAIT_MS = 1_000;
const RETRY_MS = 1_000;
const CHANGED = 'push/changed';
/** Work in one go before others get their turn in the event loop. */
const BREATH_MS = 5;

interface Fresh {
  readonly after: number;
  readonly alsoFor: Set<string>;
}

/**
 * Tells pushers what happened.
 *
 * 1. An event is announced: its room is noted, nothing more, so that the sender waits for nothing here.
 * 2. In the next turn of the event loop those of its members who have pushers get it noted.
 * 3. Each pusher looks for itself what it is to tell (`Candidates`) and tells it.
 * 4. One that cannot keeps its position and a time in the database, and nothing in memory. For all others one common
 *    position is written down every now and then.
 * 5. At start, that position and those that wait say what is still to be told.
 *
 * Of several processes each has the pushers of its own users; they come to another as if that had just started.
 */
export class Pushes {
  readonly #deps: PushesDeps;
  readonly #users: PushUsers;
  /** Rooms with events that their members have not been given yet. */
  #fresh = new Map<string, Fresh>();
  /** Everything up to here has been given to those that it concerns. */
  #distributed: number;
  #isLooking = false;
  readonly #lanes = new Lanes(WIDTH, GATEWAY_WIDTH);
  readonly #failingLanes = new Lanes(FAILING_WIDTH, FAILING_WIDTH);
  readonly #running = new Map<PusherQueue, Promise<void>>();
  readonly #marks: DutyMarks;
  readonly #takeover: Takeover<{ users: string[]; waiting: string[] }>;
  #isScheduled = false;
  #isStarted = false;
  #isClosed = false;
  /** Where it was when it gave something up; until it is known who has what from then on. */
  #releasedAt: Marks | undefined;
  #isLost: ((userId: string) => boolean) | undefined;
  #progressTimer: NodeJS.Timeout | undefined;
  #storedProgress = 0;
  /** As it stands in the database; `undefined` when that is not known. */
  #saved: number | undefined;
  #isSettledOnce = false;
  #lastBreath = 0;

  constructor(deps: PushesDeps) {
    const { cluster, rooms, receipts, table, log } = deps;
    const { stream, db } = rooms.parts;
    this.#deps = deps;
    this.#distributed = stream.current;
    this.#users = new PushUsers({
      table,
      progress: () => this.#takeover.floor({ events: this.#storedProgress, lists: 0 }).events,
      onWork: (queue) => this.#schedule(queue),
      onError: (err, userId) => log.warn({ err, userId }, 'pushers could not be read'),
    });
    this.#marks = new DutyMarks(db, cluster, 'pusher');
    this.#takeover = new Takeover({
      marks: this.#marks,
      // Not where those are that it has already: what was given out to them is looked for by those that are new.
      positions: () => ({ events: this.#distributed, lists: 0 }),
      read: async () => ({ users: await table.users(), waiting: await table.usersWaiting() }),
      settle: ({ users, waiting }, { events }) => this.#settle(users, waiting, events),
      recover: (from, upTo) => this.#recover(from.events, upTo.events),
      onFree: () => this.#scheduleAll(),
      log,
    });
    stream.subscribe(
      (pos, change) => this.#onEvent(pos, change),
      ({ from, to }) => this.#onGap(from, to),
    );
    receipts.subscribe((_pos, change) => this.#onReceipt(change));
    cluster.onAnnounce(CHANGED, ([userId, after]: readonly [string, number]) => {
      if (this.#owns(userId)) this.#users.changed(userId, after);
    });
    cluster.onGap(() => {
      void this.#reread();
      if (!cluster.shared) this.#onGap(stream.current, stream.current);
    });
    cluster.onHandover({ release: (lost) => this.#release(lost), take: () => this.#take() });
  }

  /** To be called before this process can have any duties. */
  prepare(): Promise<void> {
    return this.#marks.prepare();
  }

  /** Takes up what was outstanding when the process ended, or before it came to others. */
  async start(): Promise<void> {
    this.#isStarted = true;
    this.#take();
    this.#progressTimer = setInterval(() => void this.#keepUp(), PROGRESS_INTERVAL_MS).unref();
    if (!this.#deps.cluster.shared) await this.#takeover.free();
  }

  /** The user's pushers are others than they were. */
  async changed(userId: string): Promise<void> {
    const { cluster, rooms } = this.#deps;
    if (!cluster.shared) this.#users.changed(userId);
    else await cluster.announce(CHANGED, [userId, rooms.parts.stream.current]);
  }

  async close(): Promise<void> {
    clearInterval(this.#progressTimer);
    this.#isStarted = false;
    this.#takeover.close();
    this.#marks.close();
    const late = new Promise((wake) => setTimeout(wake, CLOSE_WAIT_MS).unref());
    await Promise.race([Promise.all(this.#running.values()), late]);
    this.#distribute();
    await this.#saveProgress();
    await this.#deps.table.idle();
    this.#users.close();
    this.#isClosed = true;
    if (this.#releasedAt) await this.#marks.forget();
  }

  #owns(userId: string): boolean {
    return this.#deps.cluster.owns('pusher', userId) && this.#isLost?.(userId) !== true;
  }

  /** Everything up to here is told, or noted in the database. */
  #positions(): Marks {
    return { events: Math.min(this.#distributed, this.#users.outstandingAfter()), lists: 0 };
  }

  #take(): void {
    if (!this.#isStarted) return;
    this.#isLost = undefined;
    this.#releasedAt = undefined;
    this.#takeover.take();
  }

  async #release(lost: (duty: Duty, key: string) => boolean): Promise<void> {
    if (!this.#isStarted && !this.#isClosed) return;
    this.#isLost = (userId) => lost('pusher', userId);
    this.#releasedAt ??= this.#takeover.floor(this.#positions());
    const from = this.#releasedAt;
    this.#takeover.release();
    const running = this.#users.release(this.#isLost).flatMap((queue) => this.#running.get(queue) ?? []);
    const late = new Promise((wake) => setTimeout(wake, RELEASE_WAIT_MS));
    if (running.length > 0) await Promise.race([Promise.all(running), late]);
    // What was told just now has to be known to who comes next.
    await this.#deps.table.idle();
    for (;;)
      try {
        await this.#marks.release(
          () => this.#takeover.floor(this.#positions()),
          () => this.#takeover.floor(from),
        );
        break;
      } catch (err) {
        if (err instanceof TakenUpError) throw err;
        this.#deps.log.warn({ err }, 'it could not be stored how far pushers are: trying again');
        await new Promise((wake) => setTimeout(wake, RETRY_MS).unref());
      }
    if (this.#isClosed) await this.#marks.forget();
  }

  #onGap(from: number, to: number): void {
    if (!this.#isStarted) return;
    // Where both are the same nobody knows whether there was something, and where.
    const after = from === to ? Math.min(from, this.#marks.stored?.events ?? from) : from;
    this.#takeover.gap({ events: after, lists: 0 }, { events: to, lists: 0 });
  }

  #settle(users: readonly string[], waiting: readonly string[], upTo: number): void {
    this.#isSettledOnce = true;
    this.#saved = undefined;
    this.#storedProgress = Math.max(this.#storedProgress, upTo);
    const gained = new Set<string>();
    for (const userId of users) {
      if (!this.#owns(userId) || this.#users.has(userId)) continue;
      gained.add(userId);
      this.#users.add(userId);
    }
    for (const userId of waiting) if (gained.has(userId)) this.#users.changed(userId);
  }

  async #recover(after: number, upTo: number): Promise<void> {
    for (const { userId, roomId } of await this.#deps.table.usersWithNews(after, upTo)) {
      if (!this.#users.has(userId)) continue;
      this.#deps.badges.roomChanged(userId, roomId);
      this.#users.news(userId, roomId, after);
    }
  }

  /** Announcements may have been missed. */
  async #reread(): Promise<void> {
    const { table, badges, log } = this.#deps;
    if (!this.#isStarted) return;
    badges.forget();
    this.#users.reread();
    try {
      for (const userId of await table.users())
        if (this.#owns(userId) && !this.#users.has(userId)) this.#users.changed(userId);
    } catch (err) {
      log.warn({ err }, 'pushers could not be read again');
      setTimeout(() => void this.#reread(), RETRY_MS).unref();
    }
  }

  #onEvent(pos: number, { roomId, memberships }: EventChange): void {
    if (this.#users.isEmpty && !this.#deps.cluster.shared) return;
    let fresh = this.#fresh.get(roomId);
    if (!fresh) {
      fresh = { after: pos - 1, alsoFor: new Set() };
      this.#fresh.set(roomId, fresh);
    }
    for (const { userId, after } of memberships) if (after !== 'join') fresh.alsoFor.add(userId);
    this.#wake();
  }

  /** Receipts say less to others than to oneself: here is less to be told. */
  #onReceipt({ userId, roomId, type }: ReceiptChange): void {
    if ((type === 'm.read' || type === 'm.read.private') && this.#users.has(userId)) {
      this.#deps.badges.roomChanged(userId, roomId);
      this.#users.hasRead(userId);
    }
  }

  #wake(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => this.#distribute());
  }

  /** Gives what is new to those that it concerns, or begins to look up who that is. */
  #distribute(): void {
    this.#isScheduled = false;
    if (this.#isLooking) return;
    const { cluster, rooms } = this.#deps;
    const upTo = rooms.parts.stream.current;
    const fresh = this.#fresh;
    if (fresh.size > 0) {
      this.#fresh = new Map();
      // Here and there a room is not in memory that another process has an event of.
      const unknown = cluster.shared ? [...fresh.keys()].filter((roomId) => !rooms.peek(roomId)) : [];
      if (unknown.length > 0 && !this.#users.isEmpty) {
        this.#isLooking = true;
        void this.#lookUp(fresh, unknown, upTo);
        return;
      }
      this.#giveAll(fresh, new Map());
    }
    this.#distributed = Math.max(this.#distributed, upTo);
  }

  async #lookUp(fresh: ReadonlyMap<string, Fresh>, unknown: readonly string[], upTo: number): Promise<void> {
    const { table, log } = this.#deps;
    const members = new Map<string, string[]>();
    for (;;)
      try {
        for (const { roomId, userId } of await table.membersOf(unknown)) {
          const ofRoom = members.get(roomId);
          if (ofRoom) ofRoom.push(userId);
          else members.set(roomId, [userId]);
        }
        break;
      } catch (err) {
        if (this.#isClosed) return;
        log.warn({ err }, 'it could not be read who is to be told: trying again');
        await new Promise((wake) => setTimeout(wake, RETRY_MS).unref());
      }
    this.#giveAll(fresh, members);
    this.#distributed = Math.max(this.#distributed, upTo);
    this.#isLooking = false;
    if (this.#fresh.size > 0) this.#wake();
  }

  #giveAll(fresh: ReadonlyMap<string, Fresh>, lookedUp: ReadonlyMap<string, readonly string[]>): void {
    for (const [roomId, { after, alsoFor }] of fresh) {
      const joined = this.#deps.rooms.peek(roomId)?.joinedHere;
      const members = joined ?? new Set(lookedUp.get(roomId));
      for (const userId of members) this.#give(userId, roomId, after);
      for (const userId of alsoFor) if (!members.has(userId)) this.#give(userId, roomId, after);
    }
  }

  #give(userId: string, roomId: string, after: number): void {
    if (!this.#users.has(userId)) return;
    this.#deps.badges.roomChanged(userId, roomId);
    this.#users.news(userId, roomId, after);
  }

  #schedule(queue: PusherQueue): void {
    if (!this.#mayRun || queue.isRunning || queue.isRemoved || queue.isStale || queue.timer) return;
    if (queue.isWaiting) this.#waitFor(queue);
    else if (queue.hasWork) this.#start(queue);
  }

  /** Nothing may be told while something older may be found yet. */
  get #mayRun(): boolean {
    return this.#isStarted && !this.#takeover.isRecovering;
  }

  #scheduleAll(): void {
    for (const queue of this.#users.withWork()) this.#schedule(queue);
  }

  #start(queue: PusherQueue): void {
    queue.isRunning = true;
    const lanes = queue.row.failures > 0 ? this.#failingLanes : this.#lanes;
    const run = lanes
      .run(laneOf(queue), () => this.#run(queue))
      .finally(() => {
        this.#running.delete(queue);
        queue.isRunning = false;
        // What came in while the run was ending has found it under way.
        this.#schedule(queue);
      });
    this.#running.set(queue, run);
  }

  #waitFor(queue: PusherQueue): void {
    const wait = Math.max(0, (queue.row.dueTs ?? 0) - Date.now());
    queue.timer = setTimeout(
      () => {
        queue.timer = undefined;
        queue.isWaiting = false;
        queue.isBehind = true;
        this.#schedule(queue);
      },
      Math.min(wait, LONGEST_TIMER_MS),
    ).unref();
  }

  async #run(queue: PusherQueue): Promise<void> {
    await this.#breathe();
    if (!this.#mayRun || queue.isRemoved || queue.isStale) return;
    const { row } = queue;
    try {
      const delivery = await this.#deliver(queue);
      if (queue.isRemoved) return;
      if (delivery.kind === 'gone') return await this.#remove(queue);
      if (delivery.kind === 'wait') return await this.#wait(queue, delivery);
      queue.delivered();
      if (row.dueTs === null) return;
      row.dueTs = null;
      await this.#deps.table.save(row);
    } catch (err) {
      this.#deps.log.warn({ err, userId: row.userId }, 'a pusher could not be served');
      await this.#wait(queue, { kind: 'wait', dueTs: Date.now() + AFTER_OWN_ERROR_MS });
    }
  }

  async #deliver(queue: PusherQueue): Promise<Delivery> {
    const { table, candidates, http, mail } = this.#deps;
    const { row } = queue;
    // Everything up to this position has to be among what is taken.
    this.#distribute();
    const to = this.#distributed;
    let news = queue.take();
    if (queue.isBehind) news = queue.caughtUp(await table.roomsWithNews(row.userId, row.pos, to));
    const notifications = await candidates.find(row.userId, news, to);
    if (row.kind === 'http') return http.deliver(queue, notifications, to);
    queue.badgeDue = false;
    if (row.kind === 'email' && mail) return mail.deliver(queue, notifications, to);
    row.pos = Math.max(row.pos, to);
    return { kind: 'done' };
  }

  /** Notes in the database where it stands and when it goes on. */
  async #wait(queue: PusherQueue, { dueTs, error }: Delivery & { kind: 'wait' }): Promise<void> {
    const { row } = queue;
    queue.fallBehind();
    if (error !== undefined && row.failures <= 3)
      this.#deps.log.info({ err: error, userId: row.userId, appId: row.appId }, 'a push did not arrive');
    row.dueTs = dueTs;
    const { changes } = queue;
    const isStored = await this.#deps.table.save(row).then(
      () => true,
      () => false,
    );
    // As long as it is not stored it holds the common position back.
    if (isStored) {
      if (queue.changes !== changes) return;
      queue.isWaiting = true;
      queue.isBehind = false;
      return;
    }
    await new Promise((wake) => setTimeout(wake, AFTER_OWN_ERROR_MS).unref());
  }

  async #remove(queue: PusherQueue): Promise<void> {
    const { userId, appId, pushkey } = queue.row;
    queue.remove();
    this.#deps.log.info({ userId, appId }, 'a push gateway has rejected a push key');
    await this.#deps.table.delete(userId, appId, pushkey);
    this.#users.changed(userId);
  }

  async #keepUp(): Promise<void> {
    await this.#saveProgress();
    if (await this.#marks.hasOrphans().catch(() => false)) this.#takeover.take();
  }

  async #saveProgress(): Promise<void> {
    this.#distribute();
    const positions = () => this.#takeover.floor(this.#positions());
    if (!this.#isSettledOnce || positions().events === this.#saved) return;
    try {
      const { events } = await this.#marks.save(positions);
      this.#saved = events;
      this.#storedProgress = events;
    } catch (err) {
      // Others tell what was this process's to tell, which is about to end.
      if (err instanceof TakenUpError) return;
      this.#deps.log.warn({ err }, 'the progress of pushers could not be stored');
    }
  }

  /** Lets others have their turn when this has gone on for long. */
  async #breathe(): Promise<void> {
    if (performance.now() - this.#lastBreath < BREATH_MS) return;
    await new Promise<void>((go) => setImmediate(go));
    this.#lastBreath = performance.now();
  }
}

function laneOf({ row }: PusherQueue): string {
  return row.kind === 'http' ? (URL.parse(String(row.data.url))?.origin ?? '') : row.kind;
}
