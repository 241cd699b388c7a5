import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import { compileGlob, type Glob } from '@trellis/protocol/glob.ts';

/** A request to a URL that others choose. It checks the addresses that names lead to; composition gives it. */
export type PreviewFetch = (
  url: string,
  options: { headers: Record<string, string>; maxBytes: number; timeoutMs: number },
) => Promise<{
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: AsyncIterable<Uint8Array>;
  /** Frees the connection; what was not read of the body is lost. */
  discard(): void;
}>;

export interface FetchedPage {
  readonly contentType: string;
  /** Where it was found in the end. */
  readonly url: URL;
  readonly body: Buffer;
}

export interface PreviewFetcherOptions {
  readonly fetch: PreviewFetch;
  /** Host names (globs) that are never asked. */
  readonly denyHosts?: readonly string[];
  /** Value of the `Accept-Language` header. */
  readonly language?: string;
}

interface FetchLimits {
  readonly maxBytes: number;
  /** Pages are read this far and no further. */
  readonly maxPageBytes: number;
  readonly timeoutMs: number;
}

const MAX_REDIRECTS = 5;
const MAX_URL = 2048;

/** Gets pages and pictures from where users' URLs lead, checking each redirect like the first URL. */
export class PreviewFetcher {
  readonly #fetch: PreviewFetch;
  readonly #denied: readonly Glob[];
  readonly #language: string;

  constructor({ fetch, denyHosts = [], language = 'en, *;q=0.5' }: PreviewFetcherOptions) {
    this.#fetch = fetch;
    this.#denied = denyHosts.map((pattern) => compileGlob(pattern.toLowerCase()));
    this.#language = language;
  }

  /** The URL when it may be asked. Throws M_FORBIDDEN for what may not, M_UNKNOWN for what is none. */
  check(text: string, base?: URL): URL {
    const url = text.length <= MAX_URL ? URL.parse(text, base?.href) : null;
    if (!url) throw new MatrixError(400, 'M_UNKNOWN', 'That is no URL');
    if (url.protocol !== 'http:' && url.protocol !== 'https:')
      throw forbidden('Only URLs of http and https have previews');
    if (url.username !== '' || url.password !== '') throw forbidden('URLs with credentials have no previews');
    // A final dot names the same host.
    const host = url.hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '');
    if (this.#denied.some((glob) => glob.matches(host)))
      throw forbidden('URLs of that host have no previews');
    url.hash = '';
    return url;
  }

  async get(url: URL, limits: FetchLimits): Promise<FetchedPage> {
    const deadline = Date.now() + limits.timeoutMs;
    let target = url;
    for (let hop = 0; ; hop++) {
      const answer = await this.#fetch(target.href, {
        headers: {
          accept: 'text/html, application/xhtml+xml, image/*;q=0.9, */*;q=0.1',
          'accept-language': this.#language,
        },
        maxBytes: limits.maxBytes,
        timeoutMs: Math.max(1, deadline - Date.now()),
      });
      try {
        const location = headerOf(answer.headers, 'location');
        if (answer.status >= 300 && answer.status < 400 && location !== undefined) {
          if (hop >= MAX_REDIRECTS) throw new Error(`more than ${MAX_REDIRECTS} redirects`);
          target = this.check(location, target);
          continue;
        }
        if (answer.status !== 200) throw new Error(`the answer is ${answer.status}`);
        const contentType = headerOf(answer.headers, 'content-type') ?? 'application/octet-stream';
        return {
          contentType,
          url: target,
          body: await readUpTo(answer.body, worthReading(contentType, limits)),
        };
      } finally {
        answer.discard();
      }
    }
  }
}

export function isPage(contentType: string): boolean {
  return /^\s*(text\/html|application\/xhtml\+xml)\s*(;|$)/i.test(contentType);
}

function worthReading(contentType: string, { maxBytes, maxPageBytes }: FetchLimits): number {
  if (isPage(contentType)) return maxPageBytes;
  return /^\s*image\//i.test(contentType) ? maxBytes : 0;
}

/** The beginning of a body, all of it when it is no longer. */
async function readUpTo(body: AsyncIterable<Uint8Array>, max: number): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  if (max === 0) return Buffer.alloc(0);
  let size = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    size += chunk.byteLength;
    if (size >= max) break;
  }
  return Buffer.concat(chunks).subarray(0, max);
}

function headerOf(headers: Record<string, string | string[] | undefined>, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}
