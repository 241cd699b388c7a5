import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import { checkedDeviceId, type Devices, newDeviceId } from './devices.ts';
import { ReadThroughCache } from './read-through-cache.ts';
import { hashBytes, newSecret, secretHash } from './secret-tokens.ts';

/** What an access token stands for. */
export interface Session {
  /** The token's hash: names it without being it. */
  readonly id: string;
  readonly userId: string;
  readonly deviceId: string;
  /** `null`: never. */
  readonly expiresTs: number | null;
  /** The session whose tokens end when one of this session's is used. */
  readonly replaces: string | null;
}

/** Tokens as the answers to `/login`, `/register` and `/refresh` give them out. */
export interface IssuedTokens {
  readonly access_token: string;
  readonly refresh_token?: string;
  readonly expires_in_ms?: number;
}

export interface LogIn {
  readonly userId: string;
  /** Left out: a new device with an id of the server's choice. */
  readonly deviceId?: string;
  readonly deviceDisplayName?: string;
  /** Whether the client can refresh tokens. */
  readonly refreshable?: boolean;
}

export interface SessionsDeps {
  readonly db: Database;
  readonly devices: Devices;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
  /** Lifetime of access tokens that can be refreshed. */
  readonly refreshableTokenLifetimeMs?: number;
  /** Lifetime of access tokens that cannot; `null`, the default: they end by logging out only. */
  readonly accessTokenLifetimeMs?: number | null;
  readonly refreshTokenLifetimeMs?: number | null;
}

interface SessionRow {
  readonly access_hash: Buffer;
  readonly access_expires_ts: number | null;
  readonly refresh_expires_ts: number | null;
  readonly replaces: Buffer | null;
  readonly user_id: string;
  readonly device_id: string;
}

const COLUMNS = 'access_hash, access_expires_ts, refresh_expires_ts, replaces, user_id, device_id';

const MAX_CACHED = 50_000;

/**
 * Access and refresh tokens. A device has one session, and for a while two: after `/refresh` the old tokens stay
 * good until one of the new ones is used, so that a client which never got the answer can ask again (spec:
 * "Refreshing access tokens"). Whoever changes a device's sessions locks the row of the device first.
 */
export class Sessions {
  readonly #db: Database;
  readonly #devices: Devices;
  readonly #cache: ReadThroughCache<Session>;
  readonly #refreshableLifetime: number;
  readonly #lifetime: number | null;
  readonly #refreshLifetime: number | null;

  constructor({ db, devices, cluster, ...lifetimes }: SessionsDeps) {
    this.#db = db;
    this.#devices = devices;
    this.#refreshableLifetime = lifetimes.refreshableTokenLifetimeMs ?? 300_000;
    this.#lifetime = lifetimes.accessTokenLifetimeMs ?? null;
    this.#refreshLifetime = lifetimes.refreshTokenLifetimeMs ?? null;
    this.#cache = new ReadThroughCache(MAX_CACHED, (id) => this.#read(id), { cluster, name: 'sessions' });
    devices.onDeviceDeleted(async (tx, userId, deviceIds) => {
      const ended = await endSessions(tx, userId, deviceIds);
      return () => this.#forget(ended);
    });
  }

  /** Makes the device unless there is one, ends the tokens it had, and gives out new ones. */
  async logIn({
    userId,
    deviceId,
    deviceDisplayName,
    refreshable = false,
  }: LogIn): Promise<IssuedTokens & { device_id: string }> {
    const device = deviceId === undefined ? newDeviceId() : checkedDeviceId(deviceId);
    const { ended, isNew, tokens } = await this.#db.transaction(async (tx) => {
      await requireUsable(tx, userId);
      const isNew = await this.#devices.ensure(tx, userId, device, deviceDisplayName);
      const ended = await endSessions(tx, userId, [device]);
      const tokens = await this.#issue(tx, { userId, deviceId: device, refreshable, replaces: null });
      return { ended, isNew, tokens };
    });
    await this.#forget(ended);
    if (isNew) await this.#devices.announce(userId, [device]);
    return { ...tokens, device_id: device };
  }

  /** The session of an access token, expired or not. */
  byAccessToken(token: string): Session | undefined | Promise<Session | undefined> {
    return this.#cache.get(secretHash(token));
  }

  /** To be called when a token of a session with `replaces` is used: ends the tokens it replaces. */
  async confirm(session: Session): Promise<boolean> {
    if (session.replaces === null) return true;
    const old = session.replaces;
    const confirmed = await this.#db.transaction(async (tx) => {
      await lockDevice(tx, session.userId, session.deviceId);
      const rows = await tx.query('UPDATE sessions SET replaces = NULL WHERE access_hash = $1 RETURNING 1', [
        hashBytes(session.id),
      ]);
      if (rows.length > 0) await tx.query('DELETE FROM sessions WHERE access_hash = $1', [hashBytes(old)]);
      return rows.length > 0;
    });
    await this.#forget([session.id, old]);
    return confirmed;
  }

  /** @throws M_UNKNOWN_TOKEN, M_USER_LOCKED */
  async refresh(refreshToken: string): Promise<IssuedTokens> {
    const hash = hashBytes(secretHash(refreshToken));
    const session = await this.#byRefreshHash(this.#db, hash);
    if (!session || !(await this.confirm(session))) throw unknownRefreshToken(false);
    const { tokens, dropped } = await this.#db.transaction(async (tx) => {
      await requireUsable(tx, session.userId);
      await lockDevice(tx, session.userId, session.deviceId);
      const current = await this.#byRefreshHash(tx, hash);
      if (!current) throw unknownRefreshToken(false);
      if (current.refreshExpiresTs !== null && current.refreshExpiresTs <= Date.now())
        throw unknownRefreshToken(true);
      // New tokens of an earlier refresh, which were never used.
      const dropped = await tx.query<SessionRow>(
        'DELETE FROM sessions WHERE replaces = $1 RETURNING access_hash',
        [hashBytes(current.id)],
      );
      const { userId, deviceId, id: replaces } = current;
      return {
        dropped: dropped.map(idOf),
        tokens: await this.#issue(tx, { userId, deviceId, refreshable: true, replaces }),
      };
    });
    await this.#forget(dropped);
    return tokens;
  }

  async #issue(
    tx: Queryable,
    session: { userId: string; deviceId: string; refreshable: boolean; replaces: string | null },
  ): Promise<IssuedTokens> {
    const { userId, deviceId, refreshable, replaces } = session;
    const now = Date.now();
    const access = newSecret('tat');
    const refresh = refreshable ? newSecret('trt') : undefined;
    const lifetime = refreshable ? this.#refreshableLifetime : this.#lifetime;
    await tx.query(
      `INSERT INTO sessions (access_hash, access_expires_ts, refresh_hash, refresh_expires_ts, replaces, user_id,
                             device_id, created_ts)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
      [
        hashBytes(secretHash(access)),
        lifetime === null ? null : now + lifetime,
        refresh === undefined ? null : hashBytes(secretHash(refresh)),
        refresh === undefined || this.#refreshLifetime === null ? null : now + this.#refreshLifetime,
        replaces === null ? null : hashBytes(replaces),
        userId,
        deviceId,
        now,
      ],
    );
    return {
      access_token: access,
      ...(refresh !== undefined && { refresh_token: refresh }),
      ...(lifetime !== null && { expires_in_ms: lifetime }),
    };
  }

  async #read(id: string): Promise<Session | undefined> {
    const rows = await this.#db.query<SessionRow>(
      { name: 'session', text: `SELECT ${COLUMNS} FROM sessions WHERE access_hash = $1` },
      [hashBytes(id)],
    );
    return rows[0] && asSession(rows[0]);
  }

  async #byRefreshHash(
    db: Queryable,
    hash: Uint8Array,
  ): Promise<(Session & { refreshExpiresTs: number | null }) | undefined> {
    const rows = await db.query<SessionRow>(`SELECT ${COLUMNS} FROM sessions WHERE refresh_hash = $1`, [
      hash,
    ]);
    return rows[0] && { ...asSession(rows[0]), refreshExpiresTs: rows[0].refresh_expires_ts };
  }

  /** A token that has ended is refused by every process before that is answered. */
  #forget(ids: readonly string[]): void | Promise<void> {
    return this.#cache.forget(...ids);
  }
}

/** @returns the ids of those that there were */
async function endSessions(tx: Queryable, userId: string, deviceIds: readonly string[]): Promise<string[]> {
  const rows = await tx.query<SessionRow>(
    'DELETE FROM sessions WHERE user_id = $1 AND device_id = ANY($2) RETURNING access_hash',
    [userId, deviceIds],
  );
  return rows.map(idOf);
}

function idOf(row: Pick<SessionRow, 'access_hash'>): string {
  return row.access_hash.toString('base64url');
}

function asSession(row: SessionRow): Session {
  return {
    id: idOf(row),
    userId: row.user_id,
    deviceId: row.device_id,
    expiresTs: row.access_expires_ts,
    replaces: row.replaces?.toString('base64url') ?? null,
  };
}

async function lockDevice(tx: Queryable, userId: string, deviceId: string): Promise<void> {
  await tx.query('SELECT 1 FROM devices WHERE user_id = $1 AND device_id = $2 FOR UPDATE', [
    userId,
    deviceId,
  ]);
}

/** Holds off a deactivation until the transaction is over: no token can be given out behind its back. */
async function requireUsable(tx: Queryable, userId: string): Promise<void> {
  const rows = await tx.query<{ locked: boolean; deactivated: boolean }>(
    'SELECT locked, deactivated_ts IS NOT NULL AS deactivated FROM accounts WHERE user_id = $1 FOR SHARE',
    [userId],
  );
  const account = rows[0];
  if (!account) throw new MatrixError(403, 'M_FORBIDDEN', 'No such account');
  if (account.deactivated)
    throw new MatrixError(403, 'M_USER_DEACTIVATED', 'This account has been deactivated');
  if (account.locked) throw userLocked();
}

/** Spec: "Account locking". */
export function userLocked(): MatrixError {
  return new MatrixError(401, 'M_USER_LOCKED', 'This account has been locked', { soft_logout: true });
}

function unknownRefreshToken(softLogout: boolean): MatrixError {
  return new MatrixError(401, 'M_UNKNOWN_TOKEN', 'Unknown or used refresh token', {
    soft_logout: softLogout,
  });
}
