import { Buffer } from 'node:buffer';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { Accounts } from './accounts.ts';
import { ReadThroughCache } from './read-through-cache.ts';
import { asObject } from './user-identifier.ts';

export type Profile = Readonly<Record<string, unknown>>;

/** What membership events and presence show of a profile. */
export interface VisibleProfile {
  readonly displayname?: string;
  readonly avatar_url?: string;
}

/** Brings changes of name and avatar to the user's rooms (spec: "Events on Change of Profile Information"). */
export interface ProfilePropagation {
  profileChanged(userId: string, profile: VisibleProfile): Promise<void>;
}

/** Profiles of other servers' users. Implemented by `federation/`. */
export interface RemoteProfiles {
  /** @throws M_NOT_FOUND and whatever else the other server says */
  query(userId: string, field?: string): Promise<Profile>;
}

export interface ProfilesDeps {
  readonly db: Database;
  readonly accounts: Accounts;
  readonly remote: RemoteProfiles;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

const MAX_DISPLAYNAME_BYTES = 256;
const MAX_AVATAR_URL_BYTES = 1000;
const MAX_FIELD_BYTES = 255;
/** Spec: the whole profile must be under 64 KiB. */
const MAX_PROFILE_BYTES = 65_536;
const MAX_CACHED = 20_000;
const REMOTE_TTL_MS = 60_000;

/** Profiles of local users as stored, and of others as their servers tell. */
export class Profiles {
  readonly #db: Database;
  readonly #accounts: Accounts;
  readonly #cache: ReadThroughCache<Profile>;
  readonly #remote: ReadThroughCache<Profile>;
  readonly #fieldListeners: Array<(userId: string, field: string) => Promise<void>> = [];
  readonly #listeners: Array<ProfilePropagation['profileChanged']> = [];
  #missing: (userId: string) => Promise<boolean> = async () => false;

  constructor({ db, accounts, remote, cluster }: ProfilesDeps) {
    this.#db = db;
    this.#accounts = accounts;
    this.#cache = new ReadThroughCache(MAX_CACHED, (userId) => this.#read(userId), {
      cluster,
      name: 'profiles',
    });
    this.#remote = new ReadThroughCache(
      2000,
      async (key) => {
        const [userId, field] = JSON.parse(key) as [string, string | null];
        return sanitised(await remote.query(userId, field ?? undefined));
      },
      { ttl: REMOTE_TTL_MS },
    );
  }

  /** Called after the name or the avatar of a local user has changed, before that is answered. */
  onChange(listener: ProfilePropagation['profileChanged']): void {
    this.#listeners.push(listener);
  }

  /** Called before it is said that there is no such local user; whether there is one now. */
  onMissing(ask: (userId: string) => Promise<boolean>): void {
    this.#missing = ask;
  }

  /** Has a local user who was never heard of made, by whoever may know them. */
  async ensureKnown(userId: string): Promise<void> {
    if (this.#isLocal(userId) && !(await this.#accounts.get(userId))) await this.#missing(userId);
  }

  /** Called after any field of a local user's profile has changed. */
  onFieldChange(listener: (userId: string, field: string) => Promise<void>): void {
    this.#fieldListeners.push(listener);
  }

  /** @throws M_NOT_FOUND, M_INVALID_PARAM */
  async get(userId: string): Promise<Profile> {
    if (this.#isLocal(userId)) return this.#local(userId);
    return (await this.#remote.get(JSON.stringify([userId, null]))) ?? {};
  }

  /** @throws M_NOT_FOUND also when the profile lacks the field */
  async getField(userId: string, field: string): Promise<unknown> {
    checkField(field);
    const profile = this.#isLocal(userId)
      ? await this.#local(userId)
      : await this.#remote.get(JSON.stringify([userId, field]));
    if (!profile || !Object.hasOwn(profile, field)) throw notFound('The profile has no such field');
    return profile[field];
  }

  /** For membership events of local users; `{}` for anybody else. */
  async visible(userId: string): Promise<VisibleProfile> {
    const profile = (await this.#cache.get(userId)) ?? {};
    return visibleOf(profile);
  }

  /**
   * Sets a field. A name or avatar of `null` or `""` is taken away, as clients expect.
   *
   * @throws M_INVALID_PARAM, M_KEY_TOO_LARGE, M_PROFILE_TOO_LARGE
   */
  async set(userId: string, field: string, value: unknown): Promise<void> {
    checkField(field);
    checkValue(field, value);
    const isName = field === 'displayname' || field === 'avatar_url';
    await this.#change(userId, field, isName && (value === null || value === '') ? undefined : value);
  }

  async delete(userId: string, field: string): Promise<void> {
    checkField(field);
    await this.#change(userId, field, undefined);
  }

  /** Takes the whole profile away, telling nobody: for accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM profile_fields WHERE user_id = $1', [userId]);
    await this.#cache.forget(userId);
  }

  async #change(userId: string, field: string, value: unknown): Promise<void> {
    const { before, after } = await this.#db.transaction(async (tx) => {
      // Changes of one profile come one after the other, for the sake of the limit on the whole.
      await tx.query('SELECT 1 FROM accounts WHERE user_id = $1 FOR UPDATE', [userId]);
      const sql = 'SELECT field, value FROM profile_fields WHERE user_id = $1';
      const before = asProfile(await tx.query<FieldRow>(sql, [userId]));
      const { [field]: _, ...others } = before;
      const after: Profile = value === undefined ? others : { ...others, [field]: value };
      if (value === undefined) {
        await tx.query('DELETE FROM profile_fields WHERE user_id = $1 AND field = $2', [userId, field]);
      } else {
        if (Buffer.byteLength(JSON.stringify(after)) >= MAX_PROFILE_BYTES)
          throw new MatrixError(400, 'M_PROFILE_TOO_LARGE', 'The profile would exceed 64 KiB');
        await tx.query(
          `INSERT INTO profile_fields (user_id, field, value) VALUES ($1, $2, $3)
           ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`,
          [userId, field, JSON.stringify(value)],
        );
      }
      return { before: visibleOf(before), after: visibleOf(after) };
    });
    await this.#cache.forget(userId);
    for (const listener of this.#fieldListeners) await listener(userId, field);
    if (before.displayname === after.displayname && before.avatar_url === after.avatar_url) return;
    for (const listener of this.#listeners) await listener(userId, after);
  }

  #isLocal(userId: string): boolean {
    const serverName = parseUserId(userId)?.serverName;
    if (serverName === undefined) throw invalidParam('This is no user id');
    return serverName === this.#accounts.serverName;
  }

  async #local(userId: string): Promise<Profile> {
    await this.ensureKnown(userId);
    const account = await this.#accounts.get(userId);
    if (!account || account.deactivated) throw notFound('Profile not found');
    return (await this.#cache.get(userId)) ?? {};
  }

  async #read(userId: string): Promise<Profile> {
    const rows = await this.#db.query<FieldRow>(
      { name: 'profile', text: 'SELECT field, value FROM profile_fields WHERE user_id = $1' },
      [userId],
    );
    return asProfile(rows);
  }
}

interface FieldRow {
  readonly field: string;
  readonly value: string;
}

function asProfile(rows: readonly FieldRow[]): Profile {
  return Object.fromEntries(rows.map(({ field, value }) => [field, decodeJson(value)]));
}

function visibleOf({ displayname, avatar_url }: Profile): VisibleProfile {
  return {
    ...(typeof displayname === 'string' && { displayname }),
    ...(typeof avatar_url === 'string' && { avatar_url }),
  };
}

/** Other servers may answer anything; clients rely on names being text. */
function sanitised(answer: unknown): Profile {
  const profile = { ...asObject(answer) };
  for (const field of ['displayname', 'avatar_url'])
    if (Object.hasOwn(profile, field) && typeof profile[field] !== 'string') delete profile[field];
  return profile;
}

function checkField(field: string): void {
  if (Buffer.byteLength(field) > MAX_FIELD_BYTES)
    throw new MatrixError(400, 'M_KEY_TOO_LARGE', `Profile keys have at most ${MAX_FIELD_BYTES} bytes`);
  // Appendices, "Common Namespaced Identifier Grammar"; the names without a namespace are those of the spec.
  if (field !== 'displayname' && field !== 'avatar_url' && !/^[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+$/.test(field))
    throw invalidParam('Invalid profile key');
}

function checkValue(field: string, value: unknown): void {
  if (value === undefined) throw new MatrixError(400, 'M_MISSING_PARAM', `The body has no ${field}`);
  if (field === 'displayname') checkName(field, value, MAX_DISPLAYNAME_BYTES);
  if (field === 'avatar_url') checkName(field, value, MAX_AVATAR_URL_BYTES);
  if (field === 'm.tz' && typeof value !== 'string') throw invalidParam('m.tz must be a string');
}

function checkName(field: string, value: unknown, maxBytes: number): void {
  if (value === null) return;
  if (typeof value !== 'string') throw invalidParam(`${field} must be a string`);
  if (Buffer.byteLength(value) > maxBytes) throw invalidParam(`${field} has at most ${maxBytes} bytes`);
}
