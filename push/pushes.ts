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
/** Work in one go before others get their turn in the event loop. */
const BREATH_MS = 5;

/**
 * Tells pushers what happened.
 *
 * 1. An event is announced: its room is noted, nothing more, so that the sender waits for nothing here.
 * 2. In the next turn of the event loop those of its members who have pushers get it noted.
 * 3. Each pusher looks for itself what it is to tell (`Candidates`) and tells it.
 * 4. One that cannot keeps its position and a time in the database, and nothing in memory. For all others one common
 *    position is written down every now and then.
 * 5. At start, that position and those that wait say what is still to be told.
 */
export class Pushes {
  readonly #deps: PushesDeps;
  readonly #users: PushUsers;
  /** Rooms with events that their members have not been given yet. */
  readonly #fresh = new Map<string, { after: number; alsoFor: Set<string> }>();
  readonly #lanes = new Lanes(WIDTH, GATEWAY_WIDTH);
  readonly #failingLanes = new Lanes(FAILING_WIDTH, FAILING_WIDTH);
  readonly #running = new Set<Promise<void>>();
  #isScheduled = false;
  #isStarted = false;
  #progressTimer: NodeJS.Timeout | undefined;
  #storedProgress = 0;
  #lastBreath = 0;

  constructor(deps: PushesDeps) {
    this.#deps = deps;
    this.#users = new PushUsers({
      table: deps.table,
      progress: () => this.#storedProgress,
      onWork: (queue) => this.#schedule(queue),
      onError: (err, userId) => deps.log.warn({ err, userId }, 'pushers could not be read'),
    });
    deps.rooms.parts.stream.subscribe((pos, change) => this.#onEvent(pos, change));
    deps.receipts.subscribe((_pos, change) => this.#onReceipt(change));
  }

  /** Takes up what was outstanding when the process ended. */
  async start(): Promise<void> {
    const { table, rooms } = this.#deps;
    const now = rooms.parts.stream.current;
    for (const userId of await table.users()) this.#users.add(userId);
    // Before the first start nobody was told anything: what is old by now is not news any more.
    const progress = (await table.progress()) ?? now;
    if (progress < now)
      for (const { userId, roomId } of await table.usersWithNews(progress, now))
        this.#users.news(userId, roomId, progress);
    this.#storedProgress = progress;
    this.#isStarted = true;
    for (const userId of await table.usersWaiting()) this.#users.changed(userId);
    for (const queue of this.#users.withWork()) this.#schedule(queue);
    this.#progressTimer = setInterval(() => this.#saveProgress(), PROGRESS_INTERVAL_MS).unref();
  }

  /** The user's pushers are others than they were. */
  changed(userId: string): void {
    this.#users.changed(userId);
  }

  async close(): Promise<void> {
    clearInterval(this.#progressTimer);
    this.#isStarted = false;
    const late = new Promise((wake) => setTimeout(wake, CLOSE_WAIT_MS).unref());
    await Promise.race([Promise.all(this.#running), late]);
    this.#distribute();
    await this.#saveProgress();
    await this.#deps.table.idle();
    this.#users.close();
  }

  #onEvent(pos: number, { roomId, memberships }: EventChange): void {
    if (this.#users.isEmpty) return;
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

  #distribute(): void {
    this.#isScheduled = false;
    for (const [roomId, { after, alsoFor }] of this.#fresh) {
      const members = this.#deps.rooms.peek(roomId)?.joinedHere;
      for (const userId of members ?? []) this.#give(userId, roomId, after);
      for (const userId of alsoFor) if (!members?.has(userId)) this.#give(userId, roomId, after);
    }
    this.#fresh.clear();
  }

  #give(userId: string, roomId: string, after: number): void {
    if (!this.#users.has(userId)) return;
    this.#deps.badges.roomChanged(userId, roomId);
    this.#users.news(userId, roomId, after);
  }

  #schedule(queue: PusherQueue): void {
    if (!this.#isStarted || queue.isRunning || queue.isRemoved || queue.timer) return;
    if (queue.isWaiting) this.#waitFor(queue);
    else if (queue.hasWork) this.#start(queue);
  }

  #start(queue: PusherQueue): void {
    queue.isRunning = true;
    const lanes = queue.row.failures > 0 ? this.#failingLanes : this.#lanes;
    const run = lanes
      .run(laneOf(queue), () => this.#run(queue))
      .finally(() => {
        this.#running.delete(run);
        queue.isRunning = false;
        // What came in while the run was ending has found it under way.
        this.#schedule(queue);
      });
    this.#running.add(run);
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
    if (!this.#isStarted || queue.isRemoved) return;
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
    const { rooms, table, candidates, http, mail } = this.#deps;
    const { row } = queue;
    // Everything up to this position has to be among what is taken.
    this.#distribute();
    const to = rooms.parts.stream.current;
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

  async #saveProgress(): Promise<void> {
    let pos = this.#deps.rooms.parts.stream.current;
    for (const { after } of this.#fresh.values()) pos = Math.min(pos, after);
    pos = Math.min(pos, this.#users.outstandingAfter());
    if (pos <= this.#storedProgress) return;
    try {
      await this.#deps.table.setProgress(pos);
      this.#storedProgress = pos;
    } catch (err) {
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
