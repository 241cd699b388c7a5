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
  /** Those that others wait for. */
  readonly #underWay = new Map<string, AbortController>();
  #count = 0;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  /** To be called before the routes are there. */
  connect(app: FastifyInstance): void {
    if (!this.#cluster.shared) return;
    app.addHook('preHandler', async (request, reply) => {
      const { duty, key } = request.routeOptions.config;
      if (duty === undefined || key === undefined || request.headers[MARK] === this.#mark) return;
      const whose = key(request);
      if (this.#cluster.owns(duty, whose)) return;
      const answer = await this.pass(duty, whose, asItCame(request), onceGone(reply));
      return send(reply, answer);
    });
    this.#cluster.serve('http', (args: { id: string; request: PassedRequest }) => this.#answer(app, args), {
      drained: false,
    });
    this.#cluster.serve('http-gone', ({ id }: { id: string }) => {
      this.#underWay.get(id)?.abort();
      return null;
    });
  }

  /** @param gone aborts when nobody waits for the answer any more */
  async pass(duty: Duty, key: string, request: PassedRequest, gone: AbortSignal): Promise<PassedAnswer> {
    const id = `${this.#cluster.self}.${++this.#count}`;
    const args = { id, request: request as never };
    const tell = () => void this.#cluster.call(duty, key, 'http-gone', { id }).catch(() => {});
    gone.addEventListener('abort', tell, { once: true });
    try {
      return await this.#cluster.call<never>(duty, key, 'http', args).catch((error: unknown) => {
        // Whoever was asked has died. What only reads may be asked again.
        const isAway = error instanceof MatrixError && error.status === 503;
        if (!isAway || request.method !== 'GET' || gone.aborted) throw error;
        return this.#cluster.call<never>(duty, key, 'http', args);
      });
    } finally {
      gone.removeEventListener('abort', tell);
    }
  }

  async #answer(app: FastifyInstance, args: { id: string; request: PassedRequest }): Promise<never> {
    const { id, request } = args;
    const gone = new AbortController();
    this.#underWay.set(id, gone);
    try {
      const options: InjectOptions = {
        method: request.method as NonNullable<InjectOptions['method']>,
        url: request.url,
        headers: { ...toRecord(request.headers), [MARK]: this.#mark },
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
      this.#underWay.delete(id);
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
