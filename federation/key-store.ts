import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { ServerKey } from './key-response.ts';

export interface StoredKeyResponse {
  response: JsonObject;
  fetchedTs: number;
  validUntilTs: number;
}

interface KeyRow {
  server_name: string;
  key_id: string;
  public_key: string;
  valid_until_ts: number;
  expired: boolean;
}

const TOPIC = 'federation/keys';

/** Keys of other servers in the database, with the servers that were asked for lately in memory. */
export class KeyStore {
  readonly #db: Queryable;
  readonly #cache = new RecentlyUsed<string, Map<string, ServerKey>>(20_000);
  /** Changes whenever keys do: what was read before is not remembered then. */
  #version = 0;

  readonly #cluster: Cluster;

  constructor(db: Queryable, cluster = alone()) {
    this.#db = db;
    this.#cluster = cluster;
    cluster.onAnnounce(TOPIC, (server: string) => this.#forget(server));
    cluster.onGap(() => {
      this.#version++;
      this.#cache.clear();
    });
  }

  #forget(server: string): void {
    this.#version++;
    this.#cache.delete(server);
  }

  /** Keys of several servers: server name to key id to key. */
  async get(servers: Iterable<string>): Promise<Map<string, Map<string, ServerKey>>> {
    const found = new Map<string, Map<string, ServerKey>>();
    const missing: string[] = [];
    for (const server of servers) {
      const keys = this.#cache.get(server);
      if (keys) found.set(server, keys);
      else missing.push(server);
    }
    if (missing.length === 0) return found;
    const version = this.#version;
    const rows = await this.#db.query<KeyRow>(
      {
        name: 'server_keys_of',
        text: `SELECT server_name, key_id, public_key, valid_until_ts, expired
               FROM server_keys WHERE server_name = ANY($1)`,
      },
      [missing],
    );
    for (const server of missing) found.set(server, new Map());
    for (const row of rows) found.get(row.server_name)?.set(row.key_id, keyOf(row));
    if (version === this.#version) for (const server of missing) this.#cache.set(server, found.get(server)!);
    return found;
  }

  /**
   * Stores what a server says of its keys. A key that it names no longer stays as it was: events were signed
   * with it, and its validity ends by itself. A retired key never comes back, and a notary's answer, which may be an
   * old one played back, never replaces another key of the same name or shortens a validity. What a crash of the
   * database takes away is asked for again, so nobody waits for its disk.
   */
  async put(
    server: string,
    keys: readonly ServerKey[],
    answer: StoredKeyResponse & { direct: boolean },
  ): Promise<void> {
    const rows = await this.#db.query<KeyRow>(
      {
        name: 'server_keys_put',
        text: `WITH stored AS (
         INSERT INTO server_keys AS known (server_name, key_id, public_key, valid_until_ts, expired)
         SELECT $1, keys.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::boolean[]) AS keys,
           (SELECT set_config('synchronous_commit', 'off', true)) AS unsynced
         ON CONFLICT (server_name, key_id) DO UPDATE
         SET public_key = excluded.public_key,
             valid_until_ts = CASE
               WHEN known.public_key <> excluded.public_key OR excluded.expired THEN excluded.valid_until_ts
               ELSE greatest(known.valid_until_ts, excluded.valid_until_ts) END,
             expired = excluded.expired
         WHERE (known.public_key = excluded.public_key AND (excluded.expired OR NOT known.expired))
            OR (known.public_key <> excluded.public_key AND $6)
         RETURNING *
       ), response AS (
         INSERT INTO server_key_responses AS known (server_name, response, fetched_ts, valid_until_ts)
         VALUES ($1, $7, $8, $9)
         ON CONFLICT (server_name) DO UPDATE
         SET response = excluded.response, fetched_ts = excluded.fetched_ts, valid_until_ts = excluded.valid_until_ts
         WHERE $6 OR excluded.valid_until_ts > known.valid_until_ts
       )
       SELECT * FROM stored UNION ALL
       SELECT * FROM server_keys WHERE server_name = $1 AND key_id NOT IN (SELECT key_id FROM stored)`,
      },
      [
        server,
        keys.map((key) => key.keyId),
        keys.map((key) => key.publicKey),
        keys.map((key) => key.validUntil),
        keys.map((key) => key.expired),
        answer.direct,
        JSON.stringify(answer.response),
        answer.fetchedTs,
        answer.validUntilTs,
      ],
    );
    this.#forget(server);
    this.#cache.set(server, new Map(rows.map((row) => [row.key_id, keyOf(row)])));
    // Whoever is not told knows for how long each key is valid.
    if (this.#cluster.shared) this.#cluster.announce(TOPIC, server).catch(() => {});
  }

  /** Last answers of servers, for the notary. */
  async responses(servers: readonly string[]): Promise<Map<string, StoredKeyResponse>> {
    const rows = await this.#db.query<{
      server_name: string;
      response: string;
      fetched_ts: number;
      valid_until_ts: number;
    }>('SELECT * FROM server_key_responses WHERE server_name = ANY($1)', [servers]);
    return new Map(
      rows.map((row) => [
        row.server_name,
        {
          response: decodeJson(row.response) as JsonObject,
          fetchedTs: row.fetched_ts,
          validUntilTs: row.valid_until_ts,
        },
      ]),
    );
  }
}

function keyOf(row: KeyRow): ServerKey {
  return {
    keyId: row.key_id,
    publicKey: row.public_key,
    validUntil: row.valid_until_ts,
    expired: row.expired,
  };
}
