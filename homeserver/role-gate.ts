import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import { type Cluster, type Duty, ROLES, type Role } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { FastifyInstance } from 'fastify';
import { BODY_LIMIT } from './http-server.ts';
import {
  fromRecord,
  type PassedAnswer,
  type PassedRequest,
  type PassingOn,
  toBytes,
  toText,
} from './passing-on.ts';

interface Work {
  readonly role: Role;
  readonly duty: Duty;
}

const SYNC: Work = { role: 'sync', duty: 'sync-request' };
const CLIENT: Work = { role: 'client', duty: 'client-request' };
const FEDERATION: Work = { role: 'federation-in', duty: 'federation-request' };

/** Files are not moved from one process to another: that costs as much as to serve them. */
const MEDIA = /^\/_matrix\/(?:media|client\/[^/]+\/media|federation\/[^/]+\/media)\//;
const SYNCS = /^\/_matrix\/client\/[^/]+\/(?:[a-z0-9_.]+\/)?(?:sync|events|initialSync)(?:\?|$)/;

/** Which role answers a request; `undefined` for what every process does. */
export function workOf(url: string): Work | undefined {
  if (!url.startsWith('/_') || MEDIA.test(url)) return undefined;
  if (url.startsWith('/_matrix/federation/') || url.startsWith('/_matrix/key/')) return FEDERATION;
  return SYNCS.test(url) ? SYNC : CLIENT;
}

/**
 * Stands before the HTTP server of a process that has not every role: what others are to answer is passed on as it came,
 * before anything is looked at.
 */
export function roleGate(
  roles: readonly Role[],
  passingOn: PassingOn,
  app: FastifyInstance,
): RequestListener {
  if (ROLES.every((role) => roles.includes(role))) return app.routing;
  return (request, response) => {
    const work = request.method === 'OPTIONS' ? undefined : workOf(request.url ?? '/');
    if (!work || roles.includes(work.role)) return app.routing(request, response);
    pass(request, response, work.duty, passingOn)
      .catch((error: unknown) => asAnswer(error))
      .then((answer) => send(response, answer, app.draining));
  };
}

/** Nobody who knows that something is done meets a process that does not know it yet. */
export function atTheGate(cluster: Cluster, serve: RequestListener): RequestListener {
  return (request, response) => cluster.abreast(() => serve(request, response));
}

async function pass(
  request: IncomingMessage,
  response: ServerResponse,
  duty: Duty,
  passingOn: PassingOn,
): Promise<PassedAnswer> {
  const gone = new AbortController();
  response.once('close', () => {
    if (!response.writableFinished) gone.abort();
  });
  const body = await bodyOf(request);
  const passed: PassedRequest = {
    method: request.method!,
    url: request.url!,
    headers: fromRecord(request.headers),
    body: body.length > 0 ? toText(body) : undefined,
    remoteAddress: request.socket.remoteAddress,
  };
  return passingOn.pass(duty, whoAsks(request), passed, gone.signal);
}

function send(response: ServerResponse, answer: PassedAnswer, draining: boolean): void {
  const bytes = toBytes(answer.body);
  for (const [name, value] of answer.headers) response.appendHeader(name, value);
  response.setHeader('content-length', bytes.length);
  if (draining) response.setHeader('connection', 'close');
  response.writeHead(answer.status).end(bytes);
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > BODY_LIMIT) throw new MatrixError(413, 'M_TOO_LARGE', 'The request body is too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** A client by its token, a server by its name; anybody else anywhere. */
function whoAsks({ url, headers }: IncomingMessage): string {
  const { authorization } = headers;
  if (authorization?.startsWith('X-Matrix')) return /origin="?([^",]+)/.exec(authorization)?.[1] ?? '';
  const token = authorization ?? /[?&]access_token=([^&]+)/.exec(url!)?.[1];
  return token ?? String(Math.random());
}

function asAnswer(error: unknown): PassedAnswer {
  const answer =
    error instanceof MatrixError ? error : new MatrixError(503, 'M_UNKNOWN', 'No process could answer');
  return {
    status: answer.status,
    headers: [
      ['content-type', 'application/json'],
      ['access-control-allow-origin', '*'],
    ],
    body: { text: JSON.stringify(answer.toBody()) },
  };
}
