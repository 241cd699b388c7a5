import { Buffer } from 'node:buffer';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { isLocalpart, parseUserId } from '@trellis/protocol/identifiers.ts';
import type { Database } from '@trellis/storage/database.ts';
import { type AppserviceTokens, noAppservices } from './appservice-users.ts';
import type { Passwords } from './passwords.ts';
import { ReadThroughCache } from './read-through-cache.ts';
import { randomLetters } from './secret-tokens.ts';
import { SharedBuckets } from './shared-buckets.ts';
import { canonicalAddress } from './threepid-address.ts';
import type { Rate } from './token-buckets.ts';

export interface Account {
  readonly userId: string;
  readonly createdTs: number;
  readonly isAdmin: boolean;
  readonly isGuest: boolean;
  readonly appserviceId: string | null;
  readonly hasPassword: boolean;
  readonly locked: boolean;
  readonly suspended: boolean;
  readonly deactivated: boolean;
  readonly erased: boolean;
}

export interface NewAccount {
  /** Left out: the server makes one up. */
  readonly localpart?: string;
  /** Left out: nobody can log in by password. */
  readonly password?: string;
  readonly admin?: boolean;
  readonly guest?: boolean;
  readonly appserviceId?: string;
}

export interface AccountsDeps {
  readonly db: Database;
  readonly serverName: string;
  readonly passwords: Passwords;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
  readonly appservices?: AppserviceTokens;
  /** Wrong passwords for one account, whoever tries them. */
  readonly failedLogins?: Rate;
}

const COLUMNS = `user_id AS "userId", created_ts AS "createdTs", is_admin AS "isAdmin", is_guest AS "isGuest",
  appservice_id AS "appserviceId", password_hash IS NOT NULL AS "hasPassword", locked, suspended,
  deactivated_ts IS NOT NULL AS deactivated, erased`;

const MAX_CACHED = 20_000;
/** Names that the server makes up: 55 bits. */
const LOWER_CASE = 'abcdefghjkmnpqrstuvwxyz23456789';

/** The accounts of this server and their passwords. */
export class Accounts {
  readonly #db: Database;
  readonly #passwords: Passwords;
  readonly #appservices: AppserviceTokens;
  readonly #cache: ReadThroughCache<Account>;
  readonly #failedLogins: SharedBuckets;
  readonly #created: Array<(account: Account) => Promise<void>> = [];
  readonly serverName: string;

  constructor({ db, serverName, passwords, cluster, appservices, failedLogins }: AccountsDeps) {
    this.#db = db;
    this.serverName = serverName;
    this.#passwords = passwords;
    this.#appservices = appservices ?? noAppservices;
    this.#failedLogins = new SharedBuckets(
      failedLogins ?? { perSecond: 0.2, burst: 10 },
      'failed-logins',
      cluster,
    );
    this.#cache = new ReadThroughCache(MAX_CACHED, (userId) => this.#read(userId), {
      cluster,
      name: 'accounts',
    });
  }

  /** Called after an account has been stored, or a guest's made a full one, before that is answered. */
  onCreated(listener: (account: Account) => Promise<void>): void {
    this.#created.push(listener);
  }

  userIdOf(localpart: string): string {
    return `@${localpart}:${this.serverName}`;
  }

  isLocal(userId: string): boolean {
    return userId.endsWith(`:${this.serverName}`) && parseUserId(userId)?.serverName === this.serverName;
  }

  get(userId: string): Account | undefined | Promise<Account | undefined> {
    return userId.includes('\0') ? undefined : this.#cache.get(userId);
  }

  /** The account that someone means who types a user id or a localpart, in whatever case. */
  async find(user: string): Promise<Account | undefined> {
    const userId = user.startsWith('@') ? user : this.userIdOf(user);
    return (await this.get(userId)) ?? (await this.get(userId.toLowerCase()));
  }

  async findByThreepid(medium: string, address: string): Promise<Account | undefined> {
    if (medium.includes('\0') || address.includes('\0')) return undefined;
    const rows = await this.#db.query<{ userId: string }>(
      'SELECT user_id AS "userId" FROM account_threepids WHERE medium = $1 AND address = $2',
      [medium, canonicalAddress(medium, address)],
    );
    return rows[0] && this.get(rows[0].userId);
  }

  /**
   * The user id for a name that someone asks for, if they may have it.
   *
   * @param appserviceId who asks, if an application service: it may have names of its namespace only
   * @throws M_INVALID_USERNAME, M_EXCLUSIVE, M_USER_IN_USE
   */
  async checkAvailable(username: string, appserviceId?: string): Promise<string> {
    const userId = this.#newUserId(username);
    if (appserviceId === undefined && username.startsWith('_'))
      throw invalidUsername('User names may not begin with _');
    const owner = this.#appservices.exclusiveOwner(userId);
    if (owner && owner.id !== appserviceId)
      throw new MatrixError(400, 'M_EXCLUSIVE', 'This user name is reserved for an application service');
    if (await this.get(userId)) throw userInUse();
    return userId;
  }

  /** @throws M_WEAK_PASSWORD, M_INVALID_PARAM for a password that an account may not have */
  checkNewPassword(password: string): void {
    this.#passwords.checkNew(password);
  }

  /** @throws M_INVALID_USERNAME, M_USER_IN_USE, M_WEAK_PASSWORD */
  async create({
    localpart,
    password,
    admin = false,
    guest = false,
    appserviceId,
  }: NewAccount): Promise<Account> {
    if (password !== undefined) this.#passwords.checkNew(password);
    const userId = this.#newUserId(localpart ?? `${guest ? 'guest-' : ''}${randomLetters(11, LOWER_CASE)}`);
    const passwordHash = password === undefined ? null : await this.#passwords.hash(password);
    const rows = await this.#db.query<Account>(
      `INSERT INTO accounts (user_id, created_ts, password_hash, is_admin, is_guest, appservice_id)
       VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING ${COLUMNS}`,
      [userId, Date.now(), passwordHash, admin, guest, appserviceId ?? null],
    );
    // Others keep nothing of accounts that there are not.
    this.#cache.drop(userId);
    const account = rows[0];
    if (!account) throw userInUse();
    for (const listener of this.#created) await listener(account);
    return account;
  }

  /** Makes a guest's account a full one (spec: "Guest Access"). */
  async upgradeGuest(userId: string, password: string): Promise<void> {
    this.#passwords.checkNew(password);
    const hash = await this.#passwords.hash(password);
    await this.#update(
      userId,
      'UPDATE accounts SET is_guest = false, password_hash = $2 WHERE user_id = $1 AND is_guest AND deactivated_ts IS NULL',
      [hash],
    );
    const account = await this.get(userId);
    if (account) for (const listener of this.#created) await listener(account);
  }

  /**
   * Whether this is the password of the account, which may be one that does not exist: that takes as long.
   *
   * @throws M_LIMIT_EXCEEDED after too many wrong ones
   */
  async checkPassword(userId: string, password: string): Promise<boolean> {
    const wait = await this.#failedLogins.wait(userId);
    if (wait > 0)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too many wrong passwords', { retry_after_ms: wait });
    const stored = await this.#passwordHash(userId);
    if (!(await this.#passwords.verify(password, stored))) {
      await this.#failedLogins.take(userId);
      return false;
    }
    if (stored !== undefined && this.#passwords.isOutdated(stored))
      await this.#rehash(userId, password, stored);
    return true;
  }

  /** @throws M_WEAK_PASSWORD, M_NOT_FOUND */
  async setPassword(userId: string, password: string): Promise<void> {
    this.#passwords.checkNew(password);
    const hash = await this.#passwords.hash(password);
    const sql = 'UPDATE accounts SET password_hash = $2 WHERE user_id = $1 AND deactivated_ts IS NULL';
    await this.#update(userId, sql, [hash]);
  }

  async setAdmin(userId: string, admin: boolean): Promise<void> {
    await this.#update(userId, 'UPDATE accounts SET is_admin = $2 WHERE user_id = $1', [admin]);
  }

  /** Spec: "Account locking". */
  async setLocked(userId: string, locked: boolean): Promise<void> {
    await this.#update(userId, 'UPDATE accounts SET locked = $2 WHERE user_id = $1', [locked]);
  }

  /** Spec: "Account suspension". */
  async setSuspended(userId: string, suspended: boolean): Promise<void> {
    await this.#update(userId, 'UPDATE accounts SET suspended = $2 WHERE user_id = $1', [suspended]);
  }

  /** From here on nobody can log in; `users/deactivation.ts` does the rest. */
  async markDeactivated(userId: string, erase: boolean): Promise<void> {
    await this.#db.transaction(async (tx) => {
      await tx.query(
        `UPDATE accounts SET deactivated_ts = coalesce(deactivated_ts, $2), password_hash = NULL, erased = erased OR $3
         WHERE user_id = $1`,
        [userId, Date.now(), erase],
      );
      await tx.query('DELETE FROM account_threepids WHERE user_id = $1', [userId]);
      await tx.query('DELETE FROM login_tokens WHERE user_id = $1', [userId]);
      await tx.query('DELETE FROM openid_tokens WHERE user_id = $1', [userId]);
      await tx.query('INSERT INTO pending_deactivations VALUES ($1, $2) ON CONFLICT DO NOTHING', [
        userId,
        erase,
      ]);
    });
    await this.#cache.forget(userId);
  }

  /** Accounts by user id, from after one of them: for administrators. */
  async list(after: string, limit: number): Promise<Account[]> {
    return this.#db.query(`SELECT ${COLUMNS} FROM accounts WHERE user_id > $1 ORDER BY user_id LIMIT $2`, [
      after,
      limit,
    ]);
  }

  #newUserId(username: string): string {
    const localpart = username.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
    const userId = this.userIdOf(localpart);
    if (!isLocalpart(localpart)) throw invalidUsername('User names can only contain a-z, 0-9, and ._=-/+');
    if (Buffer.byteLength(userId) > 255) throw invalidUsername('This user name is too long');
    return userId;
  }

  async #read(userId: string): Promise<Account | undefined> {
    const rows = await this.#db.query<Account>(
      { name: 'account', text: `SELECT ${COLUMNS} FROM accounts WHERE user_id = $1` },
      [userId],
    );
    return rows[0];
  }

  async #passwordHash(userId: string): Promise<string | undefined> {
    const rows = await this.#db.query<{ hash: string | null }>(
      'SELECT password_hash AS hash FROM accounts WHERE user_id = $1 AND deactivated_ts IS NULL',
      [userId.replaceAll('\0', '')],
    );
    return rows[0]?.hash ?? undefined;
  }

  /** Only if nobody has changed the password meanwhile. */
  async #rehash(userId: string, password: string, old: string): Promise<void> {
    const hash = await this.#passwords.hash(password);
    await this.#db.query('UPDATE accounts SET password_hash = $2 WHERE user_id = $1 AND password_hash = $3', [
      userId,
      hash,
      old,
    ]);
  }

  async #update(userId: string, sql: string, params: unknown[]): Promise<void> {
    const rows = await this.#db.query(`${sql} RETURNING 1`, [userId, ...params]);
    await this.#cache.forget(userId);
    if (rows.length === 0) throw notFound('No such account');
  }
}

function invalidUsername(message: string): MatrixError {
  return new MatrixError(400, 'M_INVALID_USERNAME', message);
}

function userInUse(): MatrixError {
  return new MatrixError(400, 'M_USER_IN_USE', 'This user name is already taken');
}
