import { Buffer } from 'node:buffer';
import { invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { OF_SESSION, type RendezvousSession, type RendezvousSessions } from './rendezvous-sessions.ts';

export interface RendezvousDeps {
  readonly sessions: RendezvousSessions;
  /** Where clients reach this server, when that is known; else where they reached it. */
  readonly publicUrl?: string;
}

const PATH = '/_matrix/client/unstable/org.matrix.msc4108/rendezvous';

interface SessionRequest {
  Params: { id: string };
  Body: unknown;
}

/** Rendezvous sessions as the 2024 version of MSC4108 has them: plain text with entity tags. */
export function etagRendezvousRoutes(app: FastifyInstance, { sessions, publicUrl }: RendezvousDeps): void {
  app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => done(null, body));

    scope.post(PATH, { config: { auth: 'none', rateLimit: 'login' } }, async (request, reply) => {
      const session = sessions.create(textOf(request));
      describe(reply, session).code(201);
      return { url: `${publicUrl ?? originOf(request)}${PATH}/${session.id}` };
    });

    scope.get<SessionRequest>(
      `${PATH}/:id`,
      { config: { auth: 'none', ...OF_SESSION } },
      async (request, reply) => {
        const session = sessions.get(request.params.id);
        describe(reply, session);
        if (request.headers['if-none-match'] === etagOf(session)) return reply.code(304).send();
        // As a buffer: clients compare the whole header, which must have no charset.
        return reply.header('content-type', 'text/plain').send(Buffer.from(session.data));
      },
    );

    scope.put<SessionRequest>(
      `${PATH}/:id`,
      { config: { auth: 'none', ...OF_SESSION } },
      async (request, reply) => {
        const { id } = request.params;
        const expected = request.headers['if-match'];
        if (expected === undefined) throw missingParam('There is no If-Match header');
        const session = sessions.update(id, unquoted(expected), textOf(request));
        if (!session) {
          describe(reply, sessions.get(id));
          throw new MatrixError(412, 'M_UNKNOWN', 'The ETag is another one by now', {
            'org.matrix.msc4108.errcode': 'M_CONCURRENT_WRITE',
          });
        }
        return describe(reply, session).code(202).header('content-type', 'text/plain').send(Buffer.alloc(0));
      },
    );

    scope.delete<SessionRequest>(
      `${PATH}/:id`,
      { config: { auth: 'none', ...OF_SESSION } },
      async (request, reply) => {
        sessions.delete(request.params.id);
        return reply.code(204).send();
      },
    );
  });
}

function describe(reply: FastifyReply, session: RendezvousSession): FastifyReply {
  return reply
    .header('etag', etagOf(session))
    .header('expires', new Date(session.expiresTs).toUTCString())
    .header('last-modified', new Date(session.changedTs).toUTCString())
    .header('cache-control', 'no-store, no-transform')
    .header('pragma', 'no-cache')
    .header('access-control-expose-headers', 'ETag');
}

function textOf(request: FastifyRequest): string {
  const type = request.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase();
  if (type !== 'text/plain') throw invalidParam('The content type must be text/plain');
  return typeof request.body === 'string' ? request.body : '';
}

function etagOf({ sequence }: RendezvousSession): string {
  return `"${sequence}"`;
}

function unquoted(etag: string): string {
  return /^(?:W\/)?"(.*)"$/.exec(etag.trim())?.[1] ?? etag;
}

function originOf(request: FastifyRequest): string {
  return `${request.protocol}://${request.host}`;
}
