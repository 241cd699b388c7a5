import { setImmediate as nextTurn } from 'node:timers/promises';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { SigningKey } from '@trellis/protocol/signing.ts';
import type { Dispatcher, Pool } from 'undici';
import type { Discovery, ResolvedServer } from '../discovery.ts';
import { parseServerAddress } from '../server-name.ts';
import { formatXMatrix, signedText } from '../x-matrix.ts';
import type { Backoff } from './backoff.ts';
import {
  BodyTooLargeError,
  BodyTooSlowError,
  PACE,
  type Pace,
  type ResponseHeaders,
  readBounded,
} from './bounded-body.ts';
import { FederationError } from './federation-error.ts';
import { type guardedConnector, guardedPool } from './guarded-dispatcher.ts';

export interface FederationRequest {
  method: 'GET' | 'PUT' | 'POST';
  destination: string;
  /** Starts with `/_matrix/`, its parts encoded: see `path`. */
  path: string;
  query?: Record<string, string | number | boolean | readonly string[] | undefined>;
  body?: JsonValue;
  /** For the whole request, from discovery to the body's last byte; 30 seconds by default. */
  timeoutMs?: number;
  /** Of the answer; 32 MiB by default. */
  maxBytes?: number;
  /** Asks also a server that failed lately: for what a user waits for, or when the server has just talked to us. */
  ignoreBackoff?: boolean;
  /** Key requests carry no signature: the other side would have to ask us for our key. */
  unsigned?: boolean;
  signal?: AbortSignal;
}

export interface FederationAnswer {
  status: number;
  headers: ResponseHeaders;
  body: Dispatcher.ResponseData['body'];
}

export interface FederationClientOptions {
  serverName: string;
  signingKey: SigningKey;
  discovery: Discovery;
  connector: ReturnType<typeof guardedConnector>;
  backoff: Backoff;
  userAgent: string;
  /** Servers that this one federates with; everyone when left out. */
  isAllowed?: (serverName: string) => boolean;
  connectionsPerDestination?: number;
  /** Destinations with open sockets at a time. */
  maxPools?: number;
  /** Requests in flight to all destinations together; more wait. */
  maxRequests?: number;
  /** How slowly answers may come. */
  pace?: Pace;
  clock?: () => number;
}

const DEFAULT_TIMEOUT = 30_000;
const DEFAULT_MAX_BYTES = 32 * 1024 * 1024;
const ERROR_MAX_BYTES = 64 * 1024;
const POOL_IDLE_TTL = 5 * 60_000;

/**
 * The signed client of the Server-Server API: finds the server, signs, bounds what it takes, and remembers who
 * does not answer. One for the process.
 */
export class FederationClient {
  readonly serverName: string;
  readonly backoff: Backoff;
  readonly #options: FederationClientOptions;
  readonly #clock: () => number;
  readonly #pools: RecentlyUsed<string, Pool>;
  #slots: number;
  readonly #waiting: Array<() => void> = [];
  #isClosed = false;

  constructor(options: FederationClientOptions) {
    this.serverName = options.serverName;
    this.backoff = options.backoff;
    this.#options = options;
    this.#clock = options.clock ?? Date.now;
    this.#slots = options.maxRequests ?? 512;
    this.#pools = new RecentlyUsed(options.maxPools ?? 500, {
      ttl: POOL_IDLE_TTL,
      updateAgeOnGet: true,
      // Waits for the requests that still run on it.
      dispose: (pool) => void pool.close().catch(() => {}),
    });
  }

  /** Makes a request and returns the JSON object that answers it. Everything else is a `FederationError`. */
  async request(request: FederationRequest): Promise<JsonObject> {
    const answer = await this.requestJson(request);
    if (answer === null || typeof answer !== 'object' || Array.isArray(answer))
      throw new FederationError(request.destination, 'invalid', 'the answer is not a JSON object');
    return answer;
  }

  /** Like `request`, for answers that may be any JSON. */
  requestJson(request: FederationRequest): Promise<JsonValue> {
    return this.stream(request, async (answer) => {
      const { destination, maxBytes = DEFAULT_MAX_BYTES } = request;
      const bytes = await readBounded(answer.headers, answer.body, maxBytes, this.#options.pace);
      try {
        return parseJson(bytes.toString('utf8'));
      } catch (cause) {
        throw new FederationError(destination, 'invalid', 'the answer is not JSON', { cause });
      }
    });
  }

  /**
   * Makes a request and gives its answer to `read` while the request's time runs: for bodies that are not JSON.
   * What `read` leaves of the body is thrown away.
   */
  async stream<T>(request: FederationRequest, read: (answer: FederationAnswer) => Promise<T>): Promise<T> {
    const { destination } = request;
    this.#refuse(request);
    const startedAt = this.#clock();
    const timeout = AbortSignal.timeout(request.timeoutMs ?? DEFAULT_TIMEOUT);
    const signal = request.signal ? AbortSignal.any([timeout, request.signal]) : timeout;
    await this.#takeSlot(signal, destination);
    try {
      const answer = await this.#connect(request, signal, startedAt);
      try {
        if (answer.status < 200 || answer.status >= 300) throw await errorOf(destination, answer);
        const result = await read(answer);
        // Until then undici takes the connection for busy, and would make another for the request after this one.
        await nextTurn();
        return result;
      } catch (error) {
        if (error instanceof BodyTooLargeError)
          throw new FederationError(destination, 'invalid', error.message, { cause: error });
        if (request.signal?.aborted || error instanceof FederationError) throw error;
        if (isTooSlow(error))
          throw new FederationError(destination, 'timeout', 'its answer came too slowly', { cause: error });
        if (timeout.aborted) throw new FederationError(destination, 'timeout', 'too slow', { cause: error });
        if (isConnectionLoss(error))
          throw new FederationError(destination, 'unreachable', 'broke off its answer', { cause: error });
        throw error;
      } finally {
        answer.body.on('error', () => {}).destroy();
      }
    } finally {
      this.#freeSlot();
    }
  }

  /** Breaks off what is under way; nothing is asked of anybody any more. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const pools = [...this.#pools.values()];
    this.#pools.clear();
    await Promise.all(pools.map((pool) => pool.destroy().catch(() => {})));
  }

  #refuse(request: FederationRequest): void {
    const { destination } = request;
    if (this.#isClosed) throw new FederationError(destination, 'unreachable', 'this server is stopping');
    if (destination === this.serverName)
      throw new FederationError(destination, 'invalid', 'that is this server itself');
    if (!parseServerAddress(destination))
      throw new FederationError(destination.slice(0, 255), 'invalid', 'not a server name');
    if (this.#options.isAllowed?.(destination) === false)
      throw new FederationError(destination, 'unreachable', 'this server does not federate with it');
    if (!request.ignoreBackoff && this.backoff.waitUntil(destination) !== undefined)
      throw new FederationError(destination, 'backoff', 'not tried, it was unreachable lately');
  }

  /** Sends, and remembers whether the destination answered. */
  async #connect(
    request: FederationRequest,
    signal: AbortSignal,
    startedAt: number,
  ): Promise<FederationAnswer> {
    const { destination } = request;
    try {
      const answer = await this.#send(request, signal);
      if (answer.status >= 500) await this.backoff.failed(destination, startedAt);
      // 401 says that the server does not accept our signature: neither down nor of use.
      else if (answer.status !== 401) await this.backoff.reachable(destination);
      return answer;
    } catch (error) {
      if (request.signal?.aborted) throw error;
      await this.backoff.failed(destination, startedAt);
      this.#options.discovery.forget(destination);
      if (signal.aborted)
        throw new FederationError(destination, 'timeout', 'no answer in time', { cause: error });
      throw new FederationError(destination, 'unreachable', messageOf(error), { cause: error });
    }
  }

  async #send(request: FederationRequest, signal: AbortSignal): Promise<FederationAnswer> {
    const { method, destination } = request;
    const uri = request.path + queryString(request.query);
    const body = request.body === undefined ? undefined : canonicalJson(request.body, { lax: true });
    const headers: Record<string, string> = {
      'user-agent': this.#options.userAgent,
      'accept-encoding': 'identity',
    };
    if (body !== undefined) headers['content-type'] = 'application/json';
    if (!request.unsigned) {
      const { signingKey } = this.#options;
      const origin = this.serverName;
      const sig = signingKey.sign(signedText({ method, uri, origin, destination, content: body }));
      headers.authorization = formatXMatrix({ origin, destination, key: signingKey.keyId, sig });
    }
    const targets = await abortable(this.#options.discovery.resolve(destination), signal);
    for (let attempt = 0; ; attempt++) {
      const target = targets[Math.min(attempt, targets.length - 1)]!;
      try {
        const response = await this.#pool(target).request({
          method,
          path: uri,
          headers: { ...headers, host: target.hostHeader },
          body,
          signal,
          // Working out an answer may take as long as the request has; once it comes, it is to keep coming.
          headersTimeout: 0,
          bodyTimeout: (this.#options.pace ?? PACE).graceMs,
        });
        return { status: response.statusCode, headers: response.headers, body: response.body };
      } catch (error) {
        const more = attempt + 1 < targets.length;
        // A kept connection that the other side has just closed is no failure; these methods may be sent twice.
        const stale = attempt < targets.length && isConnectionLoss(error) && method !== 'POST';
        if (signal.aborted || !(more || stale)) throw error;
      }
    }
  }

  #pool(target: ResolvedServer): Pool {
    const key = `${target.connectHost} ${target.port} ${target.hostHeader}`;
    let pool = this.#pools.get(key);
    if (!pool) {
      const { host } = parseServerAddress(target.hostHeader)!;
      const origin = `https://${host.includes(':') ? `[${host}]` : host}:${target.port}`;
      pool = guardedPool(
        { origin, connectHost: target.connectHost },
        this.#options.connector,
        this.#options.connectionsPerDestination ?? 8,
      );
      this.#pools.set(key, pool);
    }
    return pool;
  }

  async #takeSlot(signal: AbortSignal, destination: string): Promise<void> {
    if (this.#slots > 0) {
      this.#slots--;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const take = () => {
        signal.removeEventListener('abort', giveUp);
        resolve();
      };
      const giveUp = () => {
        const at = this.#waiting.indexOf(take);
        if (at >= 0) this.#waiting.splice(at, 1);
        reject(new FederationError(destination, 'timeout', 'too many requests are in flight'));
      };
      signal.addEventListener('abort', giveUp, { once: true });
      this.#waiting.push(take);
    });
  }

  #freeSlot(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#slots++;
  }
}

/** A path whose inserted parts are encoded: path`/_matrix/federation/v1/event/${eventId}`. */
export function path(parts: TemplateStringsArray, ...values: readonly string[]): string {
  return parts.reduce((text, part, index) => text + encodeURIComponent(values[index - 1]!) + part);
}

function queryString(query: FederationRequest['query']): string {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (Array.isArray(value)) for (const item of value as readonly string[]) params.append(name, item);
    else if (value !== undefined) params.append(name, String(value));
  }
  const text = params.toString();
  return text === '' ? '' : `?${text}`;
}

async function errorOf(destination: string, answer: FederationAnswer): Promise<FederationError> {
  const body = await readBounded(answer.headers, answer.body, ERROR_MAX_BYTES)
    .then((bytes) => parseJson(bytes.toString('utf8')))
    .catch(() => undefined);
  return new FederationError(destination, 'http', `answered ${answer.status}`, {
    status: answer.status,
    body: body !== null && typeof body === 'object' ? (body as Record<string, unknown>) : {},
  });
}

async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  let stop = () => {};
  const aborted = new Promise<never>((_resolve, reject) => {
    stop = () => reject(signal.reason as Error);
    signal.addEventListener('abort', stop, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

function isConnectionLoss(error: unknown): boolean {
  const code = (error as { code?: string }).code;
  return code === 'UND_ERR_SOCKET' || code === 'ECONNRESET' || code === 'EPIPE';
}

function isTooSlow(error: unknown): boolean {
  return error instanceof BodyTooSlowError || (error as { code?: string }).code === 'UND_ERR_BODY_TIMEOUT';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
