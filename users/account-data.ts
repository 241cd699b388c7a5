import { Buffer } from 'node:buffer';
import { invalidParam, MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { LRUCache } from 'lru-cache';
import { KeyedQueue } from './keyed-queue.ts';
import { PUSH_RULES, type PushRules } from './push-rules.ts';
import { ReadThroughCache } from './read-through-cache.ts';

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
  readonly db: Queryable;
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
  readonly #db: Queryable;
  readonly #stream: Stream<AccountDataChange>;
  readonly #pushRules: PushRules;
  readonly #queue = new KeyedQueue();
  readonly #kept = new LRUCache<string, Map<string, Entry>>({ maxSize: CACHE_SIZE });
  readonly #loading = new Map<string, Promise<Map<string, Entry>>>();
  readonly #ignored: ReadThroughCache<ReadonlySet<string>>;

  constructor({ db, stream, pushRules }: AccountDataDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#pushRules = pushRules;
    this.#ignored = new ReadThroughCache(MAX_CACHED_IGNORED, async (userId) => {
      const entry = (await this.#of(userId)).get(keyOf(null, IGNORED_USERS));
      const users = entry?.content.ignored_users;
      if (typeof users !== 'object' || users === null) return NOBODY;
      return new Set(Object.keys(users));
    });
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
      const current = data.get(keyOf(roomId, type))?.content;
      const content = change(current && !isEmpty(current) ? current : undefined);
      if (content === undefined) return;
      const json = JSON.stringify(content);
      if (json.length > MAX_CONTENT_LENGTH) throw tooLarge('The account data is too large');
      const isTooMuch = !current && data.size >= MAX_ENTRIES;
      if (isTooMuch || sizeOf(data) + json.length > MAX_TOTAL_LENGTH)
        throw tooLarge('There is too much account data');
      await this.#stream.write([{ userId, roomId, type }], async (pos) => {
        await this.#db.query(
          {
            name: 'account-data-set',
            text: `INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = EXCLUDED.content, pos = EXCLUDED.pos`,
          },
          [userId, roomId ?? '', type, json, pos],
        );
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
      this.#kept.delete(userId);
      this.#loading.delete(userId);
      this.#ignored.forget(userId);
    });
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
    if (entry.type === IGNORED_USERS && entry.roomId === null) this.#ignored.forget(userId);
  }

  #of(userId: string): Promise<Map<string, Entry>> | Map<string, Entry> {
    const kept = this.#kept.get(userId);
    if (kept) return kept;
    const loading = this.#loading.get(userId);
    if (loading) return loading;
    const reading = this.#read(userId).then(
      (data) => {
        if (this.#loading.get(userId) === reading) {
          this.#loading.delete(userId);
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

  async #read(userId: string): Promise<Map<string, Entry>> {
    const rows = await this.#db.query<{ roomId: string; type: string; content: string; pos: number }>(
      {
        name: 'account-data',
        text: 'SELECT room_id AS "roomId", type, content, pos FROM account_data WHERE user_id = $1',
      },
      [userId],
    );
    return new Map(
      rows.map(({ roomId: room, type, content, pos }) => {
        const roomId = room === '' ? null : room;
        const entry = { roomId, type, content: JSON.parse(content) as JsonObject, pos, size: content.length };
        return [keyOf(roomId, type), entry];
      }),
    );
  }
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
