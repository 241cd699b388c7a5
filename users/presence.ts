import type { Cluster, Json } from '@trellis/cluster/cluster.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { PresenceChange, PresenceState, Stream } from '@trellis/storage/streams.ts';
import { OwnerNews, type PresenceOfSync } from './presence-owner-news.ts';
import { OFFLINE, PresentUser } from './presence-user.ts';

export interface PresenceDeps {
  readonly db: Queryable;
  readonly stream: Stream<PresenceChange>;
  readonly enabled: boolean;
  /** Where there may be other processes: one of them has the devices of a user, all know what it tells. */
  readonly cluster?: Cluster | undefined;
  readonly isLocal?: (userId: string) => boolean;
}

interface Known {
  readonly state: PresenceState;
  readonly pos: number;
}

/** How often it is looked for those who went away or fell idle, in milliseconds. */
const SWEEP_INTERVAL = 5_000;
/** Users of other servers of whom nothing was heard for so long are taken to be offline. */
const REMOTE_TIMEOUT = 30 * 60_000;
/** Users whose last state is remembered, and changes that are remembered in their order. */
const MAX_KNOWN = 100_000;
const MAX_LOG = 5_000;

/** How often it is told that another server goes on saying the same. */
const HEARD_INTERVAL = 5 * 60_000;

const NOTHING: PresenceOfSync = { told: undefined, done: () => {} };

/**
 * Presence of local users by what their devices do, and of others by what their servers say (spec: "Presence").
 * Lives in memory; of local users as much is stored as is needed to go on after a restart.
 */
export class Presence {
  readonly enabled: boolean;
  readonly #db: Queryable;
  readonly #stream: Stream<PresenceChange>;
  readonly #cluster: Cluster | undefined;
  readonly #isLocal: (userId: string) => boolean;
  readonly #ownerNews: OwnerNews;
  /** Local users who are not offline and of whom this process has the devices. */
  readonly #present = new Map<string, PresentUser>();
  readonly #known = new RecentlyUsed<string, Known>(MAX_KNOWN);
  /** Users of other servers who are not offline, with when they were last heard of; oldest first. */
  readonly #remote = new Map<string, number>();
  #log: Array<{ pos: number; userId: string }> = [];
  #logFrom: number;
  #unwritten = new Map<string, PresenceState>();
  #flushed = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;

  constructor({ db, stream, enabled, cluster, isLocal = () => true }: PresenceDeps) {
    this.#db = db;
    this.#stream = stream;
    this.enabled = enabled;
    this.#logFrom = stream.current;
    this.#cluster = cluster?.shared ? cluster : undefined;
    this.#isLocal = isLocal;
    this.#ownerNews = new OwnerNews((userId, method, args) => this.#tellOwner(userId, method, args));
    stream.subscribe(
      (pos, change) => this.#heard(pos, change),
      ({ to }) => {
        this.#log = [];
        this.#logFrom = to;
      },
    );
    if (this.#cluster) this.#join(this.#cluster);
  }

  /** Takes up what was known when the server stopped, and begins to look for those who go. */
  async start(): Promise<void> {
    if (!this.enabled) return;
    const rows = await this.#db.query<Omit<PresenceState, 'currentlyActive'> & { userId: string }>(
      `SELECT user_id AS "userId", presence, status_msg AS "statusMsg", last_active_ts AS "lastActiveTs"
       FROM presence WHERE presence <> 'offline' OR status_msg IS NOT NULL LIMIT $1`,
      [MAX_KNOWN],
    );
    const now = Date.now();
    for (const { userId, ...row } of rows) {
      const state = { ...row, currentlyActive: false };
      if (!this.#known.has(userId)) this.#known.set(userId, { state, pos: this.#stream.current });
      if (row.presence !== 'offline' && this.#owns(userId)) this.#user(userId).expect(row.presence, now);
    }
    this.#timer = setInterval(() => this.sweep(), SWEEP_INTERVAL).unref();
  }

  /** A sync shows that the user is there. */
  sync(userId: string, deviceId: string, presence: 'online' | 'unavailable' | 'offline'): PresenceOfSync {
    if (!this.enabled) return NOTHING;
    if (!this.#owns(userId)) {
      if (presence === 'offline' && (this.#known.get(userId)?.state ?? OFFLINE).presence === 'offline')
        return NOTHING;
      return this.#ownerNews.sync(userId, deviceId, presence);
    }
    if (presence === 'offline' && !this.#present.has(userId)) return NOTHING;
    const now = Date.now();
    const done = this.#user(userId).beginSync(deviceId, presence, now);
    const told = this.#announce([userId], now)?.catch(() => {});
    return { told, done };
  }

  /** @param statusMsg `null` takes it away */
  set(userId: string, deviceId: string, presence: string, statusMsg: string | null): void | Promise<void> {
    if (!this.enabled) return;
    if (!this.#owns(userId))
      return this.#tellOwner(userId, 'presence.set', { deviceId, presence, statusMsg });
    const now = Date.now();
    this.#user(userId).set(deviceId, presence, statusMsg, now);
    return this.#announce([userId], now);
  }

  /** A local user did something: sent a message, say. All processes hear of that; the one that has the user acts. */
  active(userId: string): void {
    const user = this.#present.get(userId);
    if (!user) return;
    const now = Date.now();
    user.active(now);
    quietly(this.#announce([userId], now));
  }

  /** What another server says of its user. */
  receive(userId: string, state: PresenceState): void {
    if (!this.enabled) return;
    const heard = this.#remote.get(userId) ?? 0;
    this.#noteRemote(userId, state);
    const before = this.#known.get(userId)?.state;
    if (!before || isNews(before, state)) quietly(this.#tell([{ userId, state }]));
    else if (!this.#owns(userId) && Date.now() - heard > HEARD_INTERVAL)
      quietly(this.#tellOwner(userId, 'presence.heard', null));
  }

  /** `undefined` when nothing is known of the user. */
  async get(userId: string): Promise<PresenceState | undefined> {
    const present = this.#present.get(userId);
    if (present) return present.state(Date.now());
    const known = this.#known.get(userId);
    if (known || !this.enabled) return known?.state;
    const [row] = await this.#db.query<{ statusMsg: string | null; lastActiveTs: number }>(
      {
        name: 'presence',
        text: 'SELECT status_msg AS "statusMsg", last_active_ts AS "lastActiveTs" FROM presence WHERE user_id = $1',
      },
      [userId],
    );
    return row && { ...OFFLINE, ...row };
  }

  /** Those whose presence changed in (from, to]; when `from` is undefined, all of whom there is something to tell. */
  changes(from: number | undefined, to: number): Array<{ userId: string; state: PresenceState }> {
    const found: Array<{ userId: string; state: PresenceState }> = [];
    if (from !== undefined && from >= this.#logFrom) {
      const seen = new Set<string>();
      for (let i = this.#log.length - 1; i >= 0 && this.#log[i]!.pos > from; i--) {
        const { pos, userId } = this.#log[i]!;
        const known = pos <= to && !seen.has(userId) ? this.#known.get(userId) : undefined;
        seen.add(userId);
        if (known) found.push({ userId, state: known.state });
      }
      return found;
    }
    for (const [userId, { state, pos }] of this.#known.entries())
      if (from === undefined ? isTelling(state) : pos > from) found.push({ userId, state });
    return found;
  }

  /** Those of the users of whom there is something to tell. */
  of(userIds: Iterable<string>): Array<{ userId: string; state: PresenceState }> {
    const found: Array<{ userId: string; state: PresenceState }> = [];
    for (const userId of userIds) {
      const state = this.#known.get(userId)?.state;
      if (state && isTelling(state)) found.push({ userId, state });
    }
    return found;
  }

  /** Looks for those who went away, fell idle, or whose servers fell silent. */
  sweep(): void {
    const now = Date.now();
    quietly(this.#announce(this.#present.keys(), now));
    this.#ownerNews.renew(now);
    const silent: string[] = [];
    for (const [userId, heard] of this.#remote) {
      if (now - heard < REMOTE_TIMEOUT) break;
      this.#remote.delete(userId);
      if (this.#owns(userId)) silent.push(userId);
    }
    const told = this.#tell(
      silent.map((userId) => ({
        userId,
        state: {
          ...(this.#known.get(userId)?.state ?? OFFLINE),
          presence: 'offline',
          currentlyActive: false,
        },
      })),
    );
    quietly(told);
    this.flush().catch(() => {});
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.flush();
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    if (!this.#owns(userId)) return this.#tellOwner(userId, 'presence.erase', null);
    this.#present.delete(userId);
    await this.#tell([{ userId, state: OFFLINE }]);
    this.#unwritten.delete(userId);
    await this.#flushed;
    await this.#db.query('DELETE FROM presence WHERE user_id = $1', [userId]);
  }

  /** One after the other, so that the newest state is written last. */
  flush(): Promise<void> {
    const flushed = this.#flushed.then(() => this.#write());
    this.#flushed = flushed.catch(() => {});
    return flushed;
  }

  async #write(): Promise<void> {
    const rows = [...this.#unwritten];
    if (rows.length === 0) return;
    this.#unwritten = new Map();
    await this.#db.query(
      {
        name: 'presence-set',
        text: `INSERT INTO presence (user_id, presence, status_msg, last_active_ts)
               SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
               ON CONFLICT (user_id) DO UPDATE SET presence = EXCLUDED.presence,
                 status_msg = EXCLUDED.status_msg, last_active_ts = EXCLUDED.last_active_ts`,
      },
      [
        rows.map(([userId]) => userId),
        rows.map(([, { presence }]) => presence),
        rows.map(([, { statusMsg }]) => statusMsg),
        rows.map(([, { lastActiveTs }]) => lastActiveTs),
      ],
    );
  }

  #user(userId: string): PresentUser {
    let user = this.#present.get(userId);
    if (!user) {
      user = new PresentUser(this.#known.get(userId)?.state ?? OFFLINE);
      this.#present.set(userId, user);
    }
    return user;
  }

  /** Tells of those among local users whose state is another than was told last. */
  #announce(userIds: Iterable<string>, now: number): void | Promise<void> {
    const changed: PresenceChange[] = [];
    for (const userId of userIds) {
      const user = this.#present.get(userId)!;
      const state = user.state(now);
      if (state.presence === 'offline') this.#present.delete(userId);
      if (!isNews(user.told, state)) continue;
      user.told = state;
      changed.push({ userId, state });
    }
    for (const { userId, state } of changed) this.#unwritten.set(userId, state);
    return this.#tell(changed);
  }

  #tell(changes: readonly PresenceChange[]): void | Promise<void> {
    if (changes.length > 0) return this.#stream.tell(changes);
  }

  #heard(pos: number, { userId, state }: PresenceChange): void {
    this.#known.set(userId, { state, pos });
    if (!this.#isLocal(userId)) this.#noteRemote(userId, state);
    this.#log.push({ pos, userId });
    if (this.#log.length > MAX_LOG)
      for (const old of this.#log.splice(0, this.#log.length - MAX_LOG / 2)) this.#logFrom = old.pos;
  }

  /** A user of another server was heard of. */
  #noteRemote(userId: string, { presence }: PresenceState): void {
    this.#remote.delete(userId);
    if (presence !== 'offline') this.#remote.set(userId, Date.now());
    for (const oldest of this.#remote.keys()) {
      if (this.#remote.size <= MAX_KNOWN) break;
      this.#remote.delete(oldest);
    }
  }

  #owns(userId: string): boolean {
    return !this.#cluster || this.#cluster.owns('user', userId);
  }

  async #tellOwner(userId: string, method: string, args: Json): Promise<void> {
    await this.#cluster!.call('user', userId, method, args);
  }

  /** What other processes ask of this one, and what changes when users become another's. */
  #join(cluster: Cluster): void {
    cluster.serve(
      'presence.sync',
      async (args: { deviceId: string; presence: string; active: boolean }, userId) => {
        if (args.presence === 'offline' && !this.#present.has(userId)) return null;
        const now = Date.now();
        this.#user(userId).syncsElsewhere(args.deviceId, args.presence, args.active, now);
        await this.#announce([userId], now);
        return null;
      },
    );
    cluster.serve(
      'presence.set',
      async (args: { deviceId: string; presence: string; statusMsg: string | null }, userId) => {
        await this.set(userId, args.deviceId, args.presence, args.statusMsg);
        return null;
      },
    );
    cluster.serve('presence.heard', (_none, userId) => {
      if (this.#remote.delete(userId)) this.#remote.set(userId, Date.now());
      return null;
    });
    cluster.serve('presence.erase', async (_none, userId) => {
      await this.erase(userId);
      return null;
    });
    cluster.onHandover({
      release: async (lost) => {
        for (const userId of this.#present.keys()) if (lost('user', userId)) this.#present.delete(userId);
        await this.flush();
      },
      take: () => this.#take(),
    });
  }

  /** Whose devices another process had are expected here, until it is clear whether they come. */
  #take(): void {
    const now = Date.now();
    for (const [userId, { state }] of this.#known.entries())
      if (
        state.presence !== 'offline' &&
        this.#isLocal(userId) &&
        this.#owns(userId) &&
        !this.#present.has(userId)
      )
        this.#user(userId).expect(state.presence, now);
    this.#ownerNews.renewAll(now);
  }
}

function quietly(told: void | Promise<void>): void {
  told?.catch(() => {});
}

/** Who was never heard of is offline. */
function isTelling({ presence, statusMsg }: PresenceState): boolean {
  return presence !== 'offline' || statusMsg !== null;
}

/** While a user is currently active, when they were last is not told each time (spec: "Last active ago"). */
function isNews(before: PresenceState, after: PresenceState): boolean {
  return (
    before.presence !== after.presence ||
    before.statusMsg !== after.statusMsg ||
    before.currentlyActive !== after.currentlyActive ||
    (!after.currentlyActive && after.presence !== 'offline' && before.lastActiveTs !== after.lastActiveTs)
  );
}

/** Presence as clients and other servers get it. */
export function presenceContent(state: PresenceState, now = Date.now()): Record<string, unknown> {
  const { presence, statusMsg, lastActiveTs, currentlyActive } = state;
  return {
    presence,
    ...(lastActiveTs > 0 && { last_active_ago: Math.max(0, now - lastActiveTs) }),
    ...(statusMsg !== null && { status_msg: statusMsg }),
    ...((presence === 'online' || currentlyActive) && { currently_active: currentlyActive }),
  };
}
