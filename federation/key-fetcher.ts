import type { JsonObject } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { signableText } from '@trellis/protocol/signing.ts';
import { isSignature, readKeyResponse, type ServerKey, signaturesOf } from './key-response.ts';
import type { KeyStore } from './key-store.ts';
import type { FederationClient } from './outbound/client.ts';
import { FederationError } from './outbound/federation-error.ts';
import { queryNotary, serverKeys } from './outbound/query-calls.ts';

/** A server that is trusted to say which keys others have. */
export interface TrustedKeyServer {
  serverName: string;
  /** Its keys (id to Base64), when they are known; else they are asked of itself. */
  verifyKeys?: ReadonlyMap<string, string>;
}

/** Server to the key ids wanted and until when each must be valid (0: any time). */
export type WantedKeys = ReadonlyMap<string, ReadonlyMap<string, number>>;

/** A server that did not give its keys is not asked again before this; one that is down has a back-off besides. */
const FAILED_TTL = 5_000;
/** Nor one that did: a signature by an unknown key must not make us ask at each event. */
const FETCHED_TTL = 5_000;
/** From so many servers on, notaries are asked first: joining an old room needs keys of hundreds, many of them gone. */
const NOTARY_FIRST = 16;
const NOTARY_BATCH = 100;
/** Notaries are not asked again about a server before this. */
const NOTARY_TTL = 60_000;

/** Fetches keys, of each server once at a time and not more often than it makes sense. */
export class KeyFetcher {
  readonly #client: FederationClient;
  readonly #store: KeyStore;
  readonly #trusted: readonly TrustedKeyServer[];
  readonly #clock: () => number;
  readonly #running = new Map<string, Promise<boolean>>();
  readonly #recent = new RecentlyUsed<string, boolean>(50_000, { ttl: FAILED_TTL });
  readonly #askedNotaries = new RecentlyUsed<string, true>(50_000, { ttl: NOTARY_TTL });

  constructor(options: {
    client: FederationClient;
    store: KeyStore;
    trustedKeyServers?: readonly TrustedKeyServer[];
    clock?: () => number;
  }) {
    this.#client = options.client;
    this.#store = options.store;
    this.#trusted = options.trustedKeyServers ?? [];
    this.#clock = options.clock ?? Date.now;
  }

  /**
   * Tries to get the wanted keys into the store; whether they are there then is for the caller to see.
   *
   * @param isHere the servers are talking to us: they are asked whatever happened before
   */
  async fetch(wanted: WantedKeys, concurrency: number, isHere = false): Promise<void> {
    let left = new Map(wanted);
    if (this.#trusted.length > 0 && left.size > NOTARY_FIRST) left = await this.#askNotaries(left);
    const failed = new Map<string, ReadonlyMap<string, number>>();
    await limitConcurrency(concurrency, left, async ([server, keyIds]) => {
      if (!(await this.fetchDirect(server, isHere))) failed.set(server, keyIds);
    });
    if (failed.size > 0 && left.size <= NOTARY_FIRST) await this.#askNotaries(failed);
  }

  /** Asks a server for its keys. `false` when it gave none, now or a moment ago. */
  async fetchDirect(server: string, isHere = false): Promise<boolean> {
    const running = this.#running.get(server);
    if (running) return running;
    const recent = this.#recent.get(server);
    if (recent !== undefined) return recent;
    const started = this.#ask(server, isHere)
      .then(
        () => this.#note(server, true),
        // Not to have been tried says nothing.
        (error: unknown) =>
          error instanceof FederationError && error.kind === 'backoff' ? false : this.#note(server, false),
      )
      .finally(() => this.#running.delete(server));
    this.#running.set(server, started);
    return started;
  }

  #note(server: string, fetched: boolean): boolean {
    this.#recent.set(server, fetched, { ttl: fetched ? FETCHED_TTL : FAILED_TTL });
    return fetched;
  }

  async #ask(server: string, isHere: boolean): Promise<void> {
    const response = await serverKeys(this.#client, server, isHere);
    const now = this.#clock();
    const keys = readKeyResponse(response, server, now);
    await this.#keep(server, response, keys, now, true);
  }

  /** @returns what the notaries could not give */
  async #askNotaries(wanted: WantedKeys): Promise<Map<string, ReadonlyMap<string, number>>> {
    const left = new Map(wanted);
    const fresh = new Set([...wanted.keys()].filter((server) => !this.#askedNotaries.has(server)));
    for (const server of fresh) this.#askedNotaries.set(server, true);
    for (const notary of this.#trusted) {
      if (notary.serverName === this.#client.serverName) continue;
      const names = [...left.keys()].filter((name) => fresh.has(name) && name !== notary.serverName);
      for (let at = 0; at < names.length; at += NOTARY_BATCH) {
        const batch = names.slice(at, at + NOTARY_BATCH);
        const got = await this.#askNotary(notary, batch, left).catch(() => []);
        for (const server of got) left.delete(server);
      }
      if (left.size === 0) break;
    }
    return left;
  }

  async #askNotary(
    notary: TrustedKeyServer,
    servers: readonly string[],
    wanted: WantedKeys,
  ): Promise<string[]> {
    const notaryKeys = notary.verifyKeys ?? (await this.#notaryKeys(notary.serverName));
    const query = servers.map((server) => [
      server,
      Object.fromEntries(
        [...wanted.get(server)!].map(([keyId, ts]) => [keyId, { minimum_valid_until_ts: ts }]),
      ),
    ]);
    const responses = await queryNotary(this.#client, notary.serverName, Object.fromEntries(query));
    const got: string[] = [];
    for (const response of responses) {
      const server = response.server_name;
      if (
        typeof server !== 'string' ||
        !wanted.has(server) ||
        !isSignedBy(response, notary.serverName, notaryKeys)
      )
        continue;
      const now = this.#clock();
      try {
        await this.#keep(server, response, readKeyResponse(response, server, now), now, false);
        got.push(server);
      } catch {
        // One bad answer in a batch says nothing of the others.
      }
    }
    return got;
  }

  async #notaryKeys(notary: string): Promise<ReadonlyMap<string, string>> {
    await this.fetchDirect(notary);
    const keys = (await this.#store.get([notary])).get(notary) ?? new Map<string, ServerKey>();
    const now = this.#clock();
    return new Map(
      [...keys.values()]
        .filter((key) => !key.expired && key.validUntil > now)
        .map((key) => [key.keyId, key.publicKey]),
    );
  }

  async #keep(
    server: string,
    response: JsonObject,
    keys: ServerKey[],
    now: number,
    direct: boolean,
  ): Promise<void> {
    await this.#store.put(server, keys, {
      response,
      fetchedTs: now,
      validUntilTs: response.valid_until_ts as number,
      direct,
    });
  }
}

function isSignedBy(response: JsonObject, notary: string, keys: ReadonlyMap<string, string>): boolean {
  const text = signableText(response);
  return signaturesOf(response, notary)
    .slice(0, 10)
    .some(([keyId, signature]) => {
      const key = keys.get(keyId);
      return key !== undefined && isSignature(key, text, signature);
    });
}

/** Runs `work` on every item, `limit` at a time. */
export async function limitConcurrency<T>(
  limit: number,
  items: Iterable<T>,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const iterator = items[Symbol.iterator]();
  const worker = async () => {
    for (let next = iterator.next(); !next.done; next = iterator.next()) await work(next.value);
  };
  await Promise.all(Array.from({ length: limit }, worker));
}
