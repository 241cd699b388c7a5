import type { PusherRow } from './pusher-table.ts';

/** What waits to be told by one pusher: positions in rooms, never events. */
export class PusherQueue {
  readonly row: PusherRow;
  /** How often its user has changed it. */
  changes = 0;
  /** Rooms with something new, and after which position. */
  #news = new Map<string, number>();
  /** What is being delivered. */
  #taken: ReadonlyMap<string, number> = new Map();
  /** The number of unread messages may be another than the gateway was told. */
  badgeDue = false;
  lastBadge: number | undefined;
  /** Where a wait is noted in the database, the position is all that is kept: the rest is found again. */
  isWaiting = false;
  /** Deliveries begin with a look at the database for what came after the position. */
  isBehind = false;
  isRunning = false;
  isRemoved = false;
  /** Its user has changed it, and how is just being read: it may be switched off. */
  isStale = false;
  timer: NodeJS.Timeout | undefined;

  constructor(row: PusherRow) {
    this.row = row;
  }

  get key(): string {
    return `${this.row.appId}\0${this.row.pushkey}`;
  }

  /** Its user has changed it: what could not be delivered may be now. */
  changed({ kind, lang, data, pos }: PusherRow): void {
    Object.assign(this.row, { kind, lang, data, pos: Math.max(pos, this.row.pos) });
    // Switched off and on again, it begins where it was switched on.
    for (const [roomId, after] of this.#news) this.#news.set(roomId, Math.max(after, this.row.pos));
    this.changes++;
    this.isStale = false;
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.isWaiting) this.fallBehind();
    this.isWaiting = false;
  }

  get hasWork(): boolean {
    return this.#news.size > 0 || this.isBehind || this.badgeDue;
  }

  /** Nothing is lost when it is forgotten. */
  get isIdle(): boolean {
    return !this.hasWork && !this.isRunning && !this.isWaiting;
  }

  /** The position before everything that is outstanding and not noted in the database. */
  get outstandingAfter(): number {
    if (this.isWaiting) return Number.POSITIVE_INFINITY;
    if (this.isBehind) return this.row.pos;
    return Math.min(...this.#news.values(), ...this.#taken.values());
  }

  add(roomId: string, after: number): void {
    if (this.isWaiting) return;
    const from = Math.max(after, this.row.pos);
    this.#news.set(roomId, Math.min(this.#news.get(roomId) ?? from, from));
  }

  /** Everything new; what comes after that is for the next time. */
  take(): ReadonlyMap<string, number> {
    // What was found again while it was being told has been told by now.
    this.#taken = new Map(
      Array.from(this.#news, ([roomId, after]) => [roomId, Math.max(after, this.row.pos)]),
    );
    this.#news = new Map();
    return this.#taken;
  }

  /** Adds what was found in the database to what is being delivered. */
  caughtUp(rooms: Iterable<string>): ReadonlyMap<string, number> {
    const taken = new Map(this.#taken);
    for (const roomId of rooms) taken.set(roomId, this.row.pos);
    this.#taken = taken;
    this.isBehind = false;
    return taken;
  }

  delivered(): void {
    this.#taken = new Map();
  }

  /** Keeps the position, and forgets what is found again from there. */
  fallBehind(): void {
    this.#news = new Map();
    this.#taken = new Map();
    this.isBehind = true;
  }

  remove(): void {
    this.isRemoved = true;
    clearTimeout(this.timer);
    this.timer = undefined;
  }
}
