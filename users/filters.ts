import { hash } from 'node:crypto';
import { invalidParam, MatrixError, notFound, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { type Filter, parseFilter } from '@trellis/protocol/filters.ts';
import { decodeJson, parseJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { LRUCache } from 'lru-cache';
import { ReadThroughCache } from './read-through-cache.ts';

const MAX_FILTER_LENGTH = 64 * 1024;
/** Filters that a user may keep. Uploading one again makes no other. */
const MAX_FILTERS = 1000;
const CACHE_SIZE = 8 * 1024 * 1024;
const NO_FILTER: Filter = {};

/** Filters that clients store, and those that they send along (spec: "Filtering"). */
export class Filters {
  readonly #db: Queryable;
  readonly #stored: ReadThroughCache<{ json: JsonObject; filter: Filter }>;
  /** By their text: most clients of a kind send the same. */
  readonly #inline = new LRUCache<string, Filter>({
    maxSize: CACHE_SIZE,
    sizeCalculation: (_filter, text) => 2 * text.length + 100,
  });

  constructor(db: Queryable) {
    this.#db = db;
    this.#stored = new ReadThroughCache(5_000, (key) => this.#read(key));
  }

  /** @throws M_BAD_JSON, M_TOO_LARGE */
  async store(userId: string, json: JsonValue): Promise<string> {
    parseFilter(json);
    const text = JSON.stringify(json);
    if (text.length > MAX_FILTER_LENGTH) throw tooLarge('The filter is too large');
    const id = hash('sha256', text, 'base64url').slice(0, 16);
    if (await this.#stored.get(keyOf(userId, id))) return id;
    const [row] = await this.#db.query<{ count: number }>(
      'SELECT count(*) AS count FROM filters WHERE user_id = $1',
      [userId],
    );
    if (row!.count >= MAX_FILTERS) throw tooLarge(`No more than ${MAX_FILTERS} filters can be kept`);
    await this.#db.query(
      'INSERT INTO filters (user_id, filter_id, filter) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING',
      [userId, id, text],
    );
    return id;
  }

  /** The filter as it was uploaded. @throws M_NOT_FOUND */
  async get(userId: string, filterId: string): Promise<JsonObject> {
    const stored = isFilterId(filterId) ? await this.#stored.get(keyOf(userId, filterId)) : undefined;
    if (!stored) throw notFound('Unknown filter');
    return stored.json;
  }

  /**
   * The filter that a request names by its id, or holds as JSON.
   *
   * @throws M_INVALID_PARAM for unknown ids and for what is no JSON, M_BAD_JSON
   */
  async resolve(userId: string, idOrJson: string | undefined): Promise<Filter> {
    if (idOrJson === undefined || idOrJson === '') return NO_FILTER;
    if (idOrJson.startsWith('{')) return this.#parse(idOrJson);
    const stored = isFilterId(idOrJson) ? await this.#stored.get(keyOf(userId, idOrJson)) : undefined;
    if (!stored) throw invalidParam('Unknown filter');
    return stored.filter;
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM filters WHERE user_id = $1', [userId]);
  }

  #parse(text: string): Filter {
    let filter = this.#inline.get(text);
    if (filter) return filter;
    if (text.length > MAX_FILTER_LENGTH) throw tooLarge('The filter is too large');
    try {
      filter = parseFilter(parseJson(text));
    } catch (error) {
      if (error instanceof MatrixError && error.errcode === 'M_NOT_JSON')
        throw invalidParam('The filter is not JSON');
      throw error;
    }
    this.#inline.set(text, filter);
    return filter;
  }

  async #read(key: string): Promise<{ json: JsonObject; filter: Filter } | undefined> {
    const [userId, id] = key.split('\0');
    const [row] = await this.#db.query<{ filter: string }>(
      { name: 'filter', text: 'SELECT filter FROM filters WHERE user_id = $1 AND filter_id = $2' },
      [userId, id],
    );
    if (!row) return undefined;
    const json = decodeJson(row.filter) as JsonObject;
    return { json, filter: parseFilter(json) };
  }
}

function isFilterId(id: string): boolean {
  return /^[A-Za-z0-9_-]{16}$/.test(id);
}

function keyOf(userId: string, filterId: string): string {
  return `${userId}\0${filterId}`;
}
