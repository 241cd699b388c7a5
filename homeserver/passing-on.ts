import { isUtf8 } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import '@trellis/cluster/owned-routes.ts';
import type { Cluster, Duty } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyReply, FastifyRequest, InjectOptions } from 'fastify';

type Headers = Array<[name: string, value: string]>;

/** A request as it travels between processes. */
export interface PassedRequest {
  readonly method: string;
  readonly url: string;
  readonly headers: Headers;
  readonly body?: Text | undefined;
  readonly remoteAddress?: string | undefined;
}

export interface PassedAnswer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Text;
}

interface Passed {
  readonly id: string;
  readonly request: PassedRequest;
  /** No later answer is of any use. */
  readonly hurry: boolean;
}

/** Bytes: as text where they are text, else in Base64. */
export type Text = { readonly text: string } | { readonly base64: string };

/** Belong to one connection. Lengths are told anew. */
const OF_CONNECTION = new Set([
  'connection',
  'keep-alive',
  'transfer-encoding',
  'content-length',
  'expect',
  'upgrade',
  'te',
  'trailer',
]);

/** Is on requests that were passed on, with a value that nobody outside of the process can know. */
const MARK = 'x-trellis-passed-on';

/** Passes requests on to the process that is to answer them, and answers those that others pass on to this one. */
export class PassingOn {
  readonly #cluster: Cluster;
  readonly #mark = randomBytes(24).toString('base64url');
  /** What this process answers for others. */
  readonly #answering = new Map<
    string,
    { readonly gone: AbortController; readonly hurry: AbortController }
  >();
  /** What others answer for this process, and how to have that done at once. */
  readonly #asking = new Map<string, () => void>();
  #isHurrying = false;
  #count = 0;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  /** To be called before the routes are there. */
  connect(app: FastifyInstance): void {
    if (!this.#cluster.shared) return;
    app.decorateRequest('hurry', undefined);
    app.addHook('onRequest', async (request) => {
      const id = this.#markOf(request);
      if (id !== undefined) request.hurry = this.#answering.get(id)?.hurry.signal;
    });
    app.addHook('preHandler', async (request, reply) => {
      const { duty, key } = request.routeOptions.config;
      if (duty === undefined || key === undefined || this.#markOf(request) !== undefined) return;
      const whose = key(request);
      if (this.#cluster.owns(duty, whose)) return;
      const answer = await this.pass(duty, whose, asItCame(request), onceGone(reply));
      return send(reply, answer);
    });
    this.#cluster.serve('http', (args: Passed) => this.#answer(app, args), { drained: false });
    for (const what of ['gone', 'hurry'] as const)
      this.#cluster.serve(`http-${what}`, ({ id }: { id: string }) => {
        this.#answering.get(id)?.[what].abort();
        return undefined;
      });
  }

  /** This process is about to stop: nobody who has asked here is to wait any more. */
  hurry(): void {
    this.#isHurrying = true;
    for (const hurry of this.#asking.values()) hurry();
  }

  /** @param gone aborts when nobody waits for the answer any more */
  async pass(duty: Duty, key: string, request: PassedRequest, gone: AbortSignal): Promise<PassedAnswer> {
    const id = `${this.#cluster.self}.${++this.#count}`;
    const ask = () =>
      this.#cluster.call<never>(duty, key, 'http', {
        id,
        request: request as never,
        hurry: this.#isHurrying,
      });
    const tell = (what: string) => void this.#cluster.call(duty, key, what, { id }).catch(() => {});
    const hangUp = () => tell('http-gone');
    gone.addEventListener('abort', hangUp, { once: true });
    this.#asking.set(id, () => tell('http-hurry'));
    try {
      return await ask().catch((error: unknown) => {
        // Whoever was asked has died. What only reads may be asked again.
        const isAway = error instanceof MatrixError && error.status === 503;
        if (!isAway || request.method !== 'GET' || gone.aborted) throw error;
        return ask();
      });
    } finally {
      this.#asking.delete(id);
      gone.removeEventListener('abort', hangUp);
    }
  }

  /** The id of a request that was passed on to this process. */
  #markOf({ headers }: FastifyRequest): string | undefined {
    const mark = headers[MARK];
    return typeof mark === 'string' && mark.startsWith(`${this.#mark} `)
      ? mark.slice(this.#mark.length + 1)
      : undefined;
  }

  async #answer(app: FastifyInstance, { id, request, hurry: isHurrying }: Passed): Promise<never> {
    const gone = new AbortController();
    const hurry = new AbortController();
    if (isHurrying) hurry.abort();
    this.#answering.set(id, { gone, hurry });
    try {
      const options: InjectOptions = {
        method: request.method as NonNullable<InjectOptions['method']>,
        url: request.url,
        headers: { ...toRecord(request.headers), [MARK]: `${this.#mark} ${id}` },
        remoteAddress: request.remoteAddress ?? '',
        signal: gone.signal,
      };
      if (request.body) options.payload = toBytes(request.body);
      const { statusCode, headers, rawPayload } = await app.inject(options);
      const answer: PassedAnswer = {
        status: statusCode,
        headers: fromRecord(headers),
        body: toText(rawPayload),
      };
      return answer as never;
    } finally {
      this.#answering.delete(id);
    }
  }
}

export function toText(bytes: Buffer): Text {
  return isUtf8(bytes) ? { text: bytes.toString() } : { base64: bytes.toString('base64') };
}

export function toBytes(body: Text): Buffer {
  return 'text' in body ? Buffer.from(body.text) : Buffer.from(body.base64, 'base64');
}

/** Those that are not of the connection. */
export function fromRecord(headers: Readonly<Record<string, unknown>>): Headers {
  return Object.entries(headers).flatMap(([name, value]): Headers => {
    if (OF_CONNECTION.has(name) || value === undefined) return [];
    return (Array.isArray(value) ? value : [value]).map((one) => [name, String(one)]);
  });
}

function toRecord(headers: Headers): Record<string, string | string[]> {
  const record: Record<string, string | string[]> = {};
  for (const [name, value] of headers) {
    const before = record[name];
    if (before === undefined) record[name] = value;
    else record[name] = Array.isArray(before) ? [...before, value] : [before, value];
  }
  return record;
}

function asItCame(request: FastifyRequest): PassedRequest {
  const { method, originalUrl: url, body } = request;
  return {
    method,
    url,
    headers: fromRecord(request.headers),
    body: body === undefined ? undefined : { text: isText(request) ? String(body) : JSON.stringify(body) },
    remoteAddress: request.socket.remoteAddress,
  };
}

/** Some routes take plain text. */
function isText({ body, headers }: FastifyRequest): boolean {
  return typeof body === 'string' && !headers['content-type']?.includes('json');
}

/** Aborts when the client hangs up. */
function onceGone(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort();
  });
  return gone.signal;
}

function send(reply: FastifyReply, { status, headers, body }: PassedAnswer): FastifyReply {
  return reply.code(status).headers(toRecord(headers)).send(toBytes(body));
}
