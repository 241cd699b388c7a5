import { parseJson } from '@trellis/protocol/json.ts';
import { Agent, errors, request } from 'undici';
import type { Appservice } from './registry.ts';

export interface AppserviceRequest {
  readonly method: 'GET' | 'POST' | 'PUT';
  /** Tried in turn as long as the service knows no such endpoint (Application Service API, "Legacy routes"). */
  readonly paths: readonly string[];
  readonly query?: Readonly<Record<string, string>>;
  /** JSON text. */
  readonly body?: string;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

export interface AppserviceAnswer {
  readonly status: number;
  readonly text: string;
}

/** The service could not be reached, or did not answer in time. */
export class UnreachableError extends Error {
  override readonly name = 'UnreachableError';
  readonly timedOut: boolean;

  constructor(id: string, cause: Error, timedOut: boolean) {
    super(`the application service ${id} cannot be reached: ${cause.message}`, { cause });
    this.timedOut = timedOut;
  }
}

const CONNECT_TIMEOUT_MS = 10_000;
const MAX_ANSWER_BYTES = 4 * 1024 * 1024;

/** Requests to application services. Their URLs are the operator's own: no address is forbidden. */
export class AppserviceClient {
  readonly #agent = new Agent({
    connect: { timeout: CONNECT_TIMEOUT_MS },
    connections: 16,
    keepAliveTimeout: 30_000,
    maxResponseSize: MAX_ANSWER_BYTES,
  });

  /** @throws UnreachableError */
  async request(service: Appservice, asked: AppserviceRequest): Promise<AppserviceAnswer> {
    const [path, ...older] = asked.paths;
    const answer = await this.#once(service, path!, asked);
    if (older.length === 0 || !isUnknownEndpoint(answer)) return answer;
    return this.request(service, { ...asked, paths: older });
  }

  /** The JSON of an answer with status 200; `undefined` for any other. */
  async getJson(service: Appservice, asked: Omit<AppserviceRequest, 'method'>): Promise<unknown> {
    const { status, text } = await this.request(service, { ...asked, method: 'GET' });
    if (status !== 200) return undefined;
    try {
      return parseJson(text);
    } catch {
      return undefined;
    }
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  async #once(service: Appservice, path: string, asked: AppserviceRequest): Promise<AppserviceAnswer> {
    const { url, hsToken } = service.registration;
    const { method, query, body, timeoutMs } = asked;
    const timeout = AbortSignal.timeout(timeoutMs);
    try {
      const answer = await request(`${url}${path}`, {
        dispatcher: this.#agent,
        method,
        ...(query && { query }),
        ...(body !== undefined && { body }),
        headers: {
          authorization: `Bearer ${hsToken}`,
          ...(body !== undefined && { 'content-type': 'application/json' }),
        },
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
        signal: asked.signal ? AbortSignal.any([asked.signal, timeout]) : timeout,
      });
      return { status: answer.statusCode, text: await answer.body.text() };
    } catch (error) {
      const timedOut =
        timeout.aborted ||
        error instanceof errors.ConnectTimeoutError ||
        error instanceof errors.HeadersTimeoutError ||
        error instanceof errors.BodyTimeoutError;
      throw new UnreachableError(service.id, error as Error, timedOut);
    }
  }
}

/** A service that does not know what it is asked for says so with M_NOT_FOUND or an error code of its own. */
function isUnknownEndpoint({ status, text }: AppserviceAnswer): boolean {
  if (status !== 404 && status !== 405 && status !== 501) return false;
  try {
    const { errcode } = parseJson(text) as { errcode?: unknown };
    return typeof errcode !== 'string' || errcode === 'M_UNRECOGNIZED';
  } catch {
    return true;
  }
}
