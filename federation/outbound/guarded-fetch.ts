import type { Dispatcher } from 'undici';
import { BodyTooLargeError, boundedBody, headerOf, type ResponseHeaders } from './bounded-body.ts';

export interface GuardedFetchOptions {
  method?: 'GET' | 'POST' | 'PUT';
  headers?: Record<string, string>;
  body?: string | Uint8Array;
  /** The body's limit; reading beyond it throws. */
  maxBytes: number;
  /** For everything, redirects and body included. */
  timeoutMs: number;
  /** Redirects followed; each hop is checked like the first. 0 by default: the answer is the redirect itself. */
  maxRedirects?: number;
  /** Refuses `http:` also after a redirect. */
  httpsOnly?: boolean;
  signal?: AbortSignal;
}

export interface GuardedResponse {
  status: number;
  headers: ResponseHeaders;
  /** Where the answer came from, after redirects. */
  url: string;
  body: AsyncIterable<Uint8Array>;
  /** Frees the connection without reading the body. */
  discard(): void;
}

/** An HTTP request to a URL that someone else chose. */
export type GuardedFetch = (url: string, options: GuardedFetchOptions) => Promise<GuardedResponse>;

/** @param dispatcher one made by `guardedAgent` */
export function createGuardedFetch(dispatcher: Dispatcher, userAgent: string): GuardedFetch {
  return async (url, options) => {
    const timeout = AbortSignal.timeout(options.timeoutMs);
    const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout;
    let target = checkUrl(url, options);
    for (let hop = 0; ; hop++) {
      const { statusCode, headers, body } = await dispatcher.request({
        origin: target.origin,
        path: target.pathname + target.search,
        method: options.method ?? 'GET',
        headers: { 'user-agent': userAgent, 'accept-encoding': 'identity', ...options.headers },
        body: options.body,
        signal,
        headersTimeout: options.timeoutMs,
        bodyTimeout: options.timeoutMs,
      });
      const discard = () => void body.on('error', () => {}).destroy();
      const location = headerOf(headers, 'location');
      if (location !== undefined && isRedirect(statusCode) && (options.maxRedirects ?? 0) > 0) {
        discard();
        if (hop >= options.maxRedirects!) throw new Error(`more than ${options.maxRedirects} redirects`);
        target = checkUrl(new URL(location, target).href, options);
        continue;
      }
      if (Number(headerOf(headers, 'content-length') ?? 0) > options.maxBytes) {
        discard();
        throw new BodyTooLargeError(`the answer is larger than ${options.maxBytes} bytes`);
      }
      const read = boundedBody(body, options.maxBytes);
      return { status: statusCode, headers, url: target.href, body: read, discard };
    }
  };
}

/** The whole body of an answer that `maxBytes` has bounded. */
export async function collect(body: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function checkUrl(url: string, options: GuardedFetchOptions): URL {
  const parsed = new URL(url);
  if (parsed.protocol !== 'https:' && (options.httpsOnly || parsed.protocol !== 'http:'))
    throw new Error(`requests by ${parsed.protocol} are not allowed`);
  if (parsed.username !== '' || parsed.password !== '')
    throw new Error('URLs with credentials are not allowed');
  return parsed;
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
}
