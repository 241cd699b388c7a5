import { Resolver } from 'node:dns/promises';
import { parseJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { headerOf, type ResponseHeaders } from './outbound/bounded-body.ts';
import { collect, type GuardedFetch } from './outbound/guarded-fetch.ts';
import { parseServerAddress, type ServerAddress } from './server-name.ts';

/** How to reach a server. */
export interface ResolvedServer {
  /** Name or address to connect to. */
  connectHost: string;
  port: number;
  /** The `Host` header; its host is also what the certificate must be for, and the SNI. */
  hostHeader: string;
}

export interface SrvRecord {
  name: string;
  port: number;
  priority: number;
  weight: number;
}

export interface DiscoveryOptions {
  fetch: GuardedFetch;
  /** SRV records of a name; empty or an error when there are none. */
  resolveSrv?: (name: string) => Promise<SrvRecord[]>;
  /** Of `/.well-known`: 443 unless a test says otherwise. */
  wellKnownPort?: number;
  wellKnownTimeoutMs?: number;
  clock?: () => number;
}

const HOUR = 3_600_000;
const WELL_KNOWN_MAX_BYTES = 50 * 1024;
const WELL_KNOWN_MAX_REDIRECTS = 5;
const WELL_KNOWN_DEFAULT_TTL = 24 * HOUR;
const WELL_KNOWN_MAX_TTL = 48 * HOUR;
const WELL_KNOWN_MIN_TTL = 5 * 60_000;
/** Errors are looked up again after this, doubled at each failure up to an hour. */
const WELL_KNOWN_FIRST_ERROR_TTL = 60_000;
const SRV_TTL = 10 * 60_000;
const CACHE_ENTRIES = 10_000;

interface WellKnown {
  delegate: ServerAddress | undefined;
  /** The delegate as it was written. */
  name: string;
  expires: number;
  failures: number;
}

/**
 * Server discovery.
 * https://spec.matrix.org/v1.18/server-server-api/#resolving-server-names
 */
export class Discovery {
  readonly #fetch: GuardedFetch;
  readonly #resolveSrv: (name: string) => Promise<SrvRecord[]>;
  readonly #wellKnownPort: number;
  readonly #wellKnownTimeoutMs: number;
  readonly #clock: () => number;
  readonly #wellKnown = new RecentlyUsed<string, WellKnown>(CACHE_ENTRIES);
  readonly #srv = new RecentlyUsed<string, { records: SrvRecord[]; expires: number }>(CACHE_ENTRIES);
  readonly #running = new Map<string, Promise<ResolvedServer[]>>();

  constructor(options: DiscoveryOptions) {
    this.#fetch = options.fetch;
    this.#resolveSrv = options.resolveSrv ?? systemSrv;
    this.#wellKnownPort = options.wellKnownPort ?? 443;
    this.#wellKnownTimeoutMs = options.wellKnownTimeoutMs ?? 8_000;
    this.#clock = options.clock ?? Date.now;
  }

  /**
   * Where to try, best first; several only when SRV records say so.
   * Throws when `serverName` is no server name.
   */
  async resolve(serverName: string): Promise<ResolvedServer[]> {
    const address = parseServerAddress(serverName);
    if (!address) throw new Error(`${JSON.stringify(serverName)} is not a server name`);
    // Steps 1 and 2: a literal or a port says all.
    if (address.isLiteral || address.port !== undefined) return [direct(address, serverName)];
    const running = this.#running.get(serverName);
    if (running) return running;
    const started = this.#byName(serverName).finally(() => this.#running.delete(serverName));
    this.#running.set(serverName, started);
    return started;
  }

  /** Forgets what was cached for a server that cannot be reached, so that a change of its delegation is noticed. */
  forget(serverName: string): void {
    const known = this.#wellKnown.get(serverName);
    // A server that is down must not make us ask for its well-known at each attempt.
    if (known && known.expires > this.#clock() + WELL_KNOWN_MIN_TTL)
      this.#wellKnown.set(serverName, { ...known, expires: this.#clock() + WELL_KNOWN_MIN_TTL });
  }

  /** Steps 3 to 6. */
  async #byName(hostname: string): Promise<ResolvedServer[]> {
    const { delegate, name } = await this.#lookUpWellKnown(hostname);
    if (!delegate) return this.#bySrv(hostname);
    if (delegate.isLiteral || delegate.port !== undefined) return [direct(delegate, name)];
    return this.#bySrv(delegate.host);
  }

  async #bySrv(host: string): Promise<ResolvedServer[]> {
    const [current, deprecated] = await Promise.all([
      this.#lookUpSrv(`_matrix-fed._tcp.${host}`),
      this.#lookUpSrv(`_matrix._tcp.${host}`),
    ]);
    const records = current.length > 0 ? current : deprecated;
    if (records.length === 0) return [{ connectHost: host, port: 8448, hostHeader: host }];
    return records.map((record) => ({ connectHost: record.name, port: record.port, hostHeader: host }));
  }

  async #lookUpWellKnown(hostname: string): Promise<WellKnown> {
    const known = this.#wellKnown.get(hostname);
    const now = this.#clock();
    if (known && known.expires > now) return known;
    const found = await this.#fetchWellKnown(hostname).catch(() => undefined);
    let entry: WellKnown;
    if (found) {
      entry = { ...found, expires: now + found.ttl, failures: 0 };
    } else {
      const failures = (known?.failures ?? 0) + 1;
      const ttl = Math.min(HOUR, WELL_KNOWN_FIRST_ERROR_TTL * 2 ** Math.min(failures - 1, 10));
      entry = { delegate: undefined, name: '', expires: now + ttl, failures };
    }
    this.#wellKnown.set(hostname, entry);
    return entry;
  }

  async #fetchWellKnown(hostname: string) {
    const port = this.#wellKnownPort === 443 ? '' : `:${this.#wellKnownPort}`;
    const response = await this.#fetch(`https://${hostname}${port}/.well-known/matrix/server`, {
      maxBytes: WELL_KNOWN_MAX_BYTES,
      timeoutMs: this.#wellKnownTimeoutMs,
      maxRedirects: WELL_KNOWN_MAX_REDIRECTS,
      httpsOnly: true,
    });
    if (response.status !== 200) {
      response.discard();
      throw new Error(`well-known answered ${response.status}`);
    }
    const body: unknown = parseJson((await collect(response.body)).toString('utf8'));
    const name =
      body !== null && typeof body === 'object' ? (body as Record<string, unknown>)['m.server'] : undefined;
    const delegate = typeof name === 'string' ? parseServerAddress(name) : undefined;
    if (typeof name !== 'string' || !delegate) throw new Error('well-known has no valid m.server');
    return { delegate, name, ttl: cacheTime(response.headers, this.#clock()) };
  }

  async #lookUpSrv(name: string): Promise<SrvRecord[]> {
    const known = this.#srv.get(name);
    const now = this.#clock();
    if (known && known.expires > now) return known.records;
    const found = await this.#resolveSrv(name).catch(() => []);
    // A target of "." says that the service is not offered (RFC 2782).
    const records = srvOrder(found.filter((record) => record.name !== '' && record.name !== '.')).slice(0, 8);
    this.#srv.set(name, { records, expires: now + SRV_TTL });
    return records;
  }
}

function direct(address: ServerAddress, name: string): ResolvedServer {
  return { connectHost: address.host, port: address.port ?? 8448, hostHeader: name };
}

/** How long the answer may be kept, by its headers, within bounds. */
function cacheTime(headers: ResponseHeaders, now: number): number {
  const control = headerOf(headers, 'cache-control')?.toLowerCase() ?? '';
  const maxAge = /(?:^|[\s,])max-age="?(\d{1,10})/.exec(control);
  let ttl = WELL_KNOWN_DEFAULT_TTL;
  if (/(?:^|[\s,])no-(?:store|cache)/.test(control)) ttl = 0;
  else if (maxAge) ttl = Number(maxAge[1]) * 1000;
  else {
    const expires = Date.parse(headerOf(headers, 'expires') ?? '');
    if (!Number.isNaN(expires)) ttl = expires - now;
  }
  return Math.min(Math.max(ttl, WELL_KNOWN_MIN_TTL), WELL_KNOWN_MAX_TTL);
}

/** Lowest priority first; among equals by weighted chance (RFC 2782). */
function srvOrder(records: readonly SrvRecord[]): SrvRecord[] {
  const keyed = records.map((record) => ({
    record,
    key: Math.random() ** (1 / Math.max(record.weight, 0.01)),
  }));
  keyed.sort((a, b) => a.record.priority - b.record.priority || b.key - a.key);
  return keyed.map(({ record }) => record);
}

const resolver = new Resolver({ timeout: 1_500, tries: 2 });

function systemSrv(name: string): Promise<SrvRecord[]> {
  return resolver.resolveSrv(name);
}
