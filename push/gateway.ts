import { parseJson } from '@trellis/protocol/json.ts';
import { asObject } from '@trellis/users/user-identifier.ts';

/** A request to a URL that a user chose. It checks the addresses that names lead to; composition gives it. */
export type PushFetch = (
  url: string,
  options: {
    method: 'POST';
    headers: Record<string, string>;
    body: string;
    maxBytes: number;
    timeoutMs: number;
    httpsOnly: boolean;
    signal?: AbortSignal;
  },
) => Promise<{
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: AsyncIterable<Uint8Array>;
  /** Frees the connection; what was not read of the body is lost. */
  discard(): void;
}>;

export type GatewayAnswer =
  | { readonly outcome: 'delivered' | 'rejected' }
  | { readonly outcome: 'failed'; readonly error: unknown; readonly retryAfterMs: number };

const MAX_ANSWER = 64 * 1024;
const TIMEOUT_MS = 10_000;
const MAX_RETRY_AFTER_MS = 3_600_000;

/** Calls push gateways (push gateway API, `POST /_matrix/push/v1/notify`). */
export class Gateway {
  readonly #fetch: PushFetch;
  readonly #httpsOnly: boolean;
  readonly #closing = new AbortController();

  constructor(fetch: PushFetch, { allowInsecure = false }: { readonly allowInsecure?: boolean } = {}) {
    this.#fetch = fetch;
    this.#httpsOnly = !allowInsecure;
  }

  async notify(url: string, pushkey: string, notification: object): Promise<GatewayAnswer> {
    try {
      const answer = await this.#fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ notification }),
        maxBytes: MAX_ANSWER,
        timeoutMs: TIMEOUT_MS,
        httpsOnly: this.#httpsOnly,
        signal: this.#closing.signal,
      });
      if (answer.status < 200 || answer.status >= 300) {
        answer.discard();
        const error = new Error(`the gateway answered ${answer.status}`);
        return { outcome: 'failed', error, retryAfterMs: retryAfter(answer.headers) };
      }
      return { outcome: (await rejects(answer.body, pushkey)) ? 'rejected' : 'delivered' };
    } catch (error) {
      return { outcome: 'failed', error, retryAfterMs: 0 };
    }
  }

  close(): void {
    this.#closing.abort();
  }
}

/** An answer that is no JSON rejects nothing: the gateway has taken the notification. */
async function rejects(body: AsyncIterable<Uint8Array>, pushkey: string): Promise<boolean> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  try {
    const rejected = asObject(parseJson(Buffer.concat(chunks).toString()))?.rejected;
    return Array.isArray(rejected) && rejected.includes(pushkey);
  } catch {
    return false;
  }
}

function retryAfter(headers: Record<string, string | string[] | undefined>): number {
  const seconds = Number(headers['retry-after']);
  return seconds > 0 ? Math.min(seconds * 1000, MAX_RETRY_AFTER_MS) : 0;
}
