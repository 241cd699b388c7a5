import { Buffer } from 'node:buffer';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { invalidParam, MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { LRUCache } from 'lru-cache';
import { KeyedQueue } from './keyed-queue.ts';
import { lockedWrite } from './locked-write.ts';
import { PUSH_RULES, type PushRules } from './push-rules.ts';
import { ReadThroughCache } from './read-through-cache.ts';
import { sharedForgetting } from './shared-forgetting.ts';

export interface AccountDatum {
  /** `null` for global account data. */
  readonly roomId: string | null;
  readonly type: string;
  readonly content: JsonObject;
}

interface Entry extends AccountDatum {
  readonly pos: number;
  readonly size: number;
}

export interface AccountDataDeps {
  readonly db: Database;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
  readonly stream: Stream<AccountDataChange>;
  readonly pushRules: PushRules;
}

export const FULLY_READ = 'm.fully_read';
export const TAGS = 'm.tag';
const IGNORED_USERS = 'm.ignored_user_list';

const MAX_TYPE_BYTES = 255;
const MAX_CONTENT_LENGTH = 1024 * 1024;
/** Pieces of account data that a user may have: some for each of their rooms, and many rooms. */
const MAX_ENTRIES = 20_000;
/** Characters of JSON that a user may have in all. */
const MAX_TOTAL_LENGTH = 16 * 1024 * 1024;
/** Characters of JSON kept in memory. */
const CACHE_SIZE = 64 * 1024 * 1024;
const MAX_CACHED_IGNORED = 50_000;
const NOBODY: ReadonlySet<string> = new Set();

/**
 * Account data, global and by room (spec: "Client Config"). A user's is read as a whole when first asked for and then
 * kept in memory, so that syncs find there what changed. Deleted data (MSC3391) stays as `{}`: incremental syncs show
 * that it is gone, everything else behaves as if it had never been.
 */
export class AccountData {
  readonly #db: Database;
  readonly #stream: Stream<AccountDataChange>;
  readonly #pushRules: PushRules;
  readonly #queue = new KeyedQueue();
  readonly #kept = new LRUCache<string, Map<string, Entry>>({ maxSize: CACHE_SIZE });
  readonly #loading = new Map<string, Promise<Map<string, Entry>>>();
  /** Of users whose data is kept, what others have changed since. */
  readonly #outdated = new Map<string, Map<string, AccountDataChange>>();
  readonly #forgetEverywhere: ((userIds: readonly string[]) => Promise<void>) | undefined;
  readonly #ignored: ReadThroughCache<ReadonlySet<string>>;

  constructor({ db, stream, pushRules, cluster }: AccountDataDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#pushRules = pushRules;
    this.#ignored = new ReadThroughCache(MAX_CACHED_IGNORED, async (userId) => {
      const entry = (await this.#of(userId)).get(keyOf(null, IGNORED_USERS));
      const users = entry?.content.ignored_users;
      if (typeof users !== 'object' || users === null) return NOBODY;
      return new Set(Object.keys(users));
    });
    if (!cluster?.shared) {
      cluster?.onGap(() => this.#clear());
      return;
    }
    this.#forgetEverywhere = sharedForgetting(cluster, 'account-data', {
      drop: (userId) => this.#drop(userId),
      clear: () => this.#clear(),
    });
    stream.subscribe((_pos, change) => this.#heard(change));
  }

  async get(userId: string, roomId: string | null, type: string): Promise<JsonObject | undefined> {
    if (roomId === null && type === PUSH_RULES) return this.#pushRulesContent(userId);
    const content = (await this.#of(userId)).get(keyOf(roomId, type))?.content;
    return content && !isEmpty(content) ? content : undefined;
  }

  /** Data changed at positions (from, to]; all there is when `from` is undefined. `m.push_rules` is among it. */
  async changes(userId: string, from: number | undefined, to: number): Promise<AccountDatum[]> {
    const data = await this.#of(userId);
    const isNew = (pos: number) => from === undefined || (pos > from && pos <= to);
    const changed: AccountDatum[] = [];
    for (const entry of data.values())
      if (isNew(entry.pos) && !(from === undefined && isEmpty(entry.content))) changed.push(entry);
    const rules = await this.#pushRules.of(userId);
    if (isNew(rules.pos))
      changed.push({ roomId: null, type: PUSH_RULES, content: await this.#pushRulesContent(userId) });
    return changed;
  }

  /** @throws M_BAD_JSON (405) for types that the server keeps itself, M_INVALID_PARAM, M_TOO_LARGE */
  async set(userId: string, roomId: string | null, type: string, content: JsonObject): Promise<void> {
    if (type === FULLY_READ || type === PUSH_RULES)
      throw new MatrixError(405, 'M_BAD_JSON', `Cannot set ${type} through this API.`);
    await this.update(userId, roomId, type, () => content);
  }

  /** MSC3391; for what is not there nothing happens. */
  async delete(userId: string, roomId: string | null, type: string): Promise<void> {
    if (type === FULLY_READ || type === PUSH_RULES)
      throw new MatrixError(405, 'M_BAD_JSON', `Cannot delete ${type} through this API.`);
    await this.update(userId, roomId, type, (current) => (current ? {} : undefined));
  }

  /**
   * Changes one piece; two changes of a user's data never overlap.
   *
   * @param change gets what there is, gives what shall be; `undefined` leaves it
   */
  async update(
    userId: string,
    roomId: string | null,
    type: string,
    change: (current: JsonObject | undefined) => JsonObject | undefined,
  ): Promise<void> {
    checkType(type);
    await this.#queue.run(userId, async () => {
      const data = await this.#of(userId);
      if (this.#forgetEverywhere)
        return lockedWrite(this.#db, this.#stream, `account-data ${userId}`, async (tx, announce) => {
          const [current] = await read(tx, userId, [{ roomId, type }]);
          const changed = changedEntry(data, current?.content, change);
          if (changed)
            await store(tx, userId, roomId, type, changed.json, await announce({ userId, roomId, type }));
        });
      const changed = changedEntry(data, data.get(keyOf(roomId, type))?.content, change);
      if (!changed) return;
      const { content, json } = changed;
      await this.#stream.write([{ userId, roomId, type }], async (pos) => {
        await store(this.#db, userId, roomId, type, json, pos);
        this.#changed(userId, { roomId, type, content, pos, size: json.length });
      });
    });
  }

  /** Users whose messages and invites the user does not want to see (spec: "Ignoring Users"). */
  async ignoredUsers(userId: string): Promise<ReadonlySet<string>> {
    return (await this.#ignored.get(userId)) ?? NOBODY;
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#queue.run(userId, async () => {
      await this.#db.query('DELETE FROM account_data WHERE user_id = $1', [userId]);
      this.#drop(userId);
      await this.#forgetEverywhere?.([userId]);
    });
  }

  #clear(): void {
    this.#kept.clear();
    this.#loading.clear();
    this.#outdated.clear();
    this.#ignored.clear();
  }

  #drop(userId: string): void {
    this.#kept.delete(userId);
    this.#loading.delete(userId);
    this.#outdated.delete(userId);
    this.#ignored.drop(userId);
  }

  /** Some process has changed a piece: it is read when it is next asked for. */
  #heard(change: AccountDataChange): void {
    const { userId, roomId, type } = change;
    // Push rules and thread subscriptions are not kept here, and cost no more than a look.
    this.#loading.delete(userId);
    if (this.#kept.has(userId)) {
      const outdated = this.#outdated.get(userId) ?? new Map<string, AccountDataChange>();
      this.#outdated.set(userId, outdated.set(keyOf(roomId, type), change));
    } else this.#outdated.delete(userId);
    if (type === IGNORED_USERS && roomId === null) this.#ignored.drop(userId);
  }

  async #pushRulesContent(userId: string): Promise<JsonObject> {
    return { global: await this.#pushRules.ruleset(userId) } as unknown as JsonObject;
  }

  #changed(userId: string, entry: Entry): void {
    // What is being read now may lack this: it serves those who asked for it before, and is not kept.
    this.#loading.delete(userId);
    const data = this.#kept.get(userId);
    data?.set(keyOf(entry.roomId, entry.type), entry);
    if (data) this.#keep(userId, data);
    if (entry.type === IGNORED_USERS && entry.roomId === null) this.#ignored.drop(userId);
  }

  #of(userId: string): Promise<Map<string, Entry>> | Map<string, Entry> {
    const kept = this.#kept.get(userId);
    const outdated = this.#outdated.get(userId);
    if (kept && !outdated) return kept;
    const loading = this.#loading.get(userId);
    if (loading) return loading;
    const reading = this.#read(userId, kept, outdated).then(
      (data) => {
        if (this.#loading.get(userId) === reading) {
          this.#loading.delete(userId);
          this.#outdated.delete(userId);
          this.#keep(userId, data);
        }
        return data;
      },
      (error) => {
        if (this.#loading.get(userId) === reading) this.#loading.delete(userId);
        throw error;
      },
    );
    this.#loading.set(userId, reading);
    return reading;
  }

  #keep(userId: string, data: Map<string, Entry>): void {
    this.#kept.set(userId, data, { size: 1000 + sizeOf(data) });
  }

  /** All of a user's data, or what is kept of it with those pieces read anew. */
  async #read(
    userId: string,
    kept?: ReadonlyMap<string, Entry>,
    outdated?: ReadonlyMap<string, AccountDataChange>,
  ): Promise<Map<string, Entry>> {
    const isPart = kept !== undefined && outdated !== undefined;
    const data = new Map<string, Entry>(isPart ? kept : []);
    for (const entry of await read(this.#db, userId, isPart ? [...outdated.values()] : undefined))
      data.set(keyOf(entry.roomId, entry.type), entry);
    return data;
  }
}

async function read(
  db: Queryable,
  userId: string,
  pieces?: ReadonlyArray<{ roomId: string | null; type: string }>,
): Promise<Entry[]> {
  const columns = 'a.room_id AS "roomId", a.type, a.content, a.pos';
  const rows = await db.query<{ roomId: string; type: string; content: string; pos: number }>(
    pieces
      ? {
          name: 'account-data-pieces',
          text: `SELECT ${columns} FROM unnest($2::text[], $3::text[]) AS p (room_id, type)
                 JOIN account_data a ON a.user_id = $1 AND a.room_id = p.room_id AND a.type = p.type`,
        }
      : { name: 'account-data', text: `SELECT ${columns} FROM account_data a WHERE user_id = $1` },
    pieces ? [userId, pieces.map(({ roomId }) => roomId ?? ''), pieces.map(({ type }) => type)] : [userId],
  );
  return rows.map(({ roomId, type, content, pos }) => ({
    roomId: roomId === '' ? null : roomId,
    type,
    content: decodeJson(content) as JsonObject,
    pos,
    size: content.length,
  }));
}

/** What a piece becomes; `undefined` when it stays. @throws M_TOO_LARGE */
function changedEntry(
  data: ReadonlyMap<string, Entry>,
  current: JsonObject | undefined,
  change: (current: JsonObject | undefined) => JsonObject | undefined,
): { content: JsonObject; json: string } | undefined {
  const content = change(current && !isEmpty(current) ? current : undefined);
  if (content === undefined) return undefined;
  const json = JSON.stringify(content);
  if (json.length > MAX_CONTENT_LENGTH) throw tooLarge('The account data is too large');
  const isTooMuch = !current && data.size >= MAX_ENTRIES;
  if (isTooMuch || sizeOf(data) + json.length > MAX_TOTAL_LENGTH)
    throw tooLarge('There is too much account data');
  return { content, json };
}

async function store(
  db: Queryable,
  userId: string,
  roomId: string | null,
  type: string,
  json: string,
  pos: number,
): Promise<void> {
  await db.query(
    {
      name: 'account-data-set',
      text: `INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = EXCLUDED.content, pos = EXCLUDED.pos`,
    },
    [userId, roomId ?? '', type, json, pos],
  );
}

function sizeOf(data: ReadonlyMap<string, Entry>): number {
  let size = 0;
  for (const entry of data.values()) size += entry.size + 200;
  return size;
}

function keyOf(roomId: string | null, type: string): string {
  return `${roomId ?? ''}\0${type}`;
}

function isEmpty(content: object): boolean {
  for (const _ in content) return false;
  return true;
}

function checkType(type: string): void {
  if (type === '' || Buffer.byteLength(type) > MAX_TYPE_BYTES || type.includes('\0') || !type.isWellFormed())
    throw invalidParam(`Types of account data have 1 to ${MAX_TYPE_BYTES} bytes`);
}
