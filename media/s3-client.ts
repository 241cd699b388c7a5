import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { setTimeout as wait } from 'node:timers/promises';
import { Agent, type Dispatcher } from 'undici';
import { type AwsCredentials, EMPTY_HASH, encodePath, queryString, signedHeaders } from './aws-signature.ts';

export interface S3Options extends AwsCredentials {
  /** `https://s3.eu-central-1.amazonaws.com`, `http://127.0.0.1:9000`. */
  readonly endpoint: string;
  readonly bucket: string;
  /** The bucket's name in the path and not in the host name. */
  readonly pathStyle: boolean;
}

export interface S3Call {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'DELETE';
  /** Of the object; the bucket itself when there is none. */
  readonly key?: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly file?: { readonly path: string; readonly size: number; readonly sha256: Buffer };
  readonly signal?: AbortSignal;
}

/** What the store answered, or that it did not. It names neither keys nor credentials. */
export class S3Error extends Error {
  override readonly name = 'S3Error';
  readonly status: number | undefined;
  readonly code: string | undefined;

  constructor(method: string, answer: { status?: number; code?: string; cause?: unknown }) {
    const { status, code, cause } = answer;
    const said = status === undefined ? 'did not answer' : `answered ${status}${code ? ` ${code}` : ''}`;
    super(`the S3 store ${said} (${method})`, { cause });
    this.status = status;
    this.code = code;
  }
}

const ATTEMPTS = 4;
const FIRST_PAUSE_MS = 200;
/** Answers that pass, from a store that is busy or restarts. */
const PASSING = new Set([429, 500, 502, 503, 504]);
const MAX_ERROR_BYTES = 64 * 1024;

/** Signed requests to one bucket. Every call can be made again, so what fails in passing is. */
export class S3Client {
  readonly #options: S3Options;
  readonly #origin: string;
  readonly #path: string;
  readonly #agent: Agent;

  constructor(options: S3Options) {
    const url = new URL(options.endpoint);
    if (!options.pathStyle) url.hostname = `${options.bucket}.${url.hostname}`;
    this.#options = options;
    this.#origin = url.origin;
    this.#path = url.pathname.replace(/\/$/, '') + (options.pathStyle ? `/${options.bucket}` : '');
    // The operator chose the address, so it may be inside the network.
    this.#agent = new Agent({
      connections: 64,
      connect: { timeout: 10_000 },
      headersTimeout: 30_000,
      bodyTimeout: 30_000,
    });
  }

  /** The answer when it is a success or 404, its body still to be read. Throws `S3Error` for every other. */
  async call(call: S3Call): Promise<Dispatcher.ResponseData> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#once(call);
      } catch (error) {
        const passing = error instanceof S3Error && (error.status === undefined || PASSING.has(error.status));
        if (!passing || attempt >= ATTEMPTS || call.signal?.aborted) throw error;
      }
      await wait(FIRST_PAUSE_MS * 2 ** (attempt - 1) * (0.5 + Math.random()), undefined, {
        signal: call.signal,
      });
    }
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  async #once({
    method,
    key,
    query = {},
    headers = {},
    file,
    signal,
  }: S3Call): Promise<Dispatcher.ResponseData> {
    const path = encodePath(`${this.#path}/${key ?? ''}`);
    const search = queryString(query);
    const signed = signedHeaders(
      this.#options,
      {
        method,
        path,
        query,
        headers: { ...headers, host: new URL(this.#origin).host },
        bodyHash: file?.sha256.toString('hex') ?? EMPTY_HASH,
      },
      new Date(),
    );
    const answer = await this.#agent
      .request({
        origin: this.#origin,
        path: search === '' ? path : `${path}?${search}`,
        method,
        headers: { ...signed, ...(file && { 'content-length': String(file.size) }) },
        body: file && file.size > 0 ? createReadStream(file.path) : null,
        signal,
      })
      .catch((cause: unknown) => {
        throw new S3Error(method, { cause });
      });
    const { statusCode: status, body } = answer;
    if ((status >= 200 && status < 300) || status === 404) return answer;
    throw new S3Error(method, { status, code: await errorCode(body) });
  }
}

/** The `<Code>` of an answer that says what went wrong; answers to HEAD have none. */
async function errorCode(body: Readable): Promise<string | undefined> {
  let text = '';
  try {
    for await (const chunk of body) {
      text += String(chunk);
      if (text.length > MAX_ERROR_BYTES) break;
    }
  } catch {
    // The status says enough.
  }
  return /<Code>([A-Za-z0-9]{1,100})<\/Code>/.exec(text)?.[1];
}
