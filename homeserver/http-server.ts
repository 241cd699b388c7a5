import { type Buffer, isUtf8 } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import { FederationError } from '@trellis/federation/outbound/federation-error.ts';
import { badJson, MatrixError, notJson, unrecognized } from '@trellis/protocol/errors.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import { UnavailableError } from '@trellis/storage/unavailable.ts';
import type { FastifyBaseLogger } from 'fastify';
import Fastify, { type FastifyInstance, type FastifyServerOptions, LogController } from 'fastify';

/** Bodies beyond this are refused with M_TOO_LARGE; media has a limit of its own. */
export const BODY_LIMIT = 4 * 1024 * 1024;

/**
 * The HTTP server that both APIs are plugged into: body parsing, errors, CORS and unknown paths as Matrix wants
 * them. It listens nowhere yet.
 */
export function createHttpServer(
  logger: FastifyBaseLogger,
  options: FastifyServerOptions = {},
): FastifyInstance {
  const app = Fastify({
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: BODY_LIMIT,
    trustProxy: true,
    genReqId: () => randomBytes(6).toString('base64url'),
    routerOptions: { maxParamLength: 4096, ignoreTrailingSlash: false },
    rewriteUrl: (request) => currentUrl(request.url ?? '/'),
    ajv: {
      customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: true, allErrors: false },
    },
    ...options,
  }) as unknown as FastifyInstance;

  // Clients leave the content type out or set it wrongly, so every body is JSON unless a plugin says otherwise.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => {
    if (body.length === 0) return done(null, undefined);
    try {
      if (!isUtf8(body as Buffer)) throw notJson('The request body is not UTF-8');
      done(null, parseJson(body.toString()));
    } catch (error) {
      done(error instanceof MatrixError ? error : notJson('The request body is not JSON'));
    }
  });

  // Clients leave the body out where they have nothing to say in it.
  app.addHook('preValidation', async (request) => {
    if (request.body === undefined && request.routeOptions.schema?.body) request.body = {};
  });

  app.setErrorHandler(
    (
      error: Error & { statusCode?: number; validation?: unknown; validationContext?: string; code?: string },
      request,
      reply,
    ) => {
      const answer = asMatrixError(error);
      // 502 and 504 tell of another server's failure, which is nothing to be woken up for. That the database is away has
      // been said once.
      const level = answer.status >= 502 ? 'warn' : 'error';
      if (answer.status >= 500)
        request.log[level]({ err: error, url: request.routeOptions.url }, 'request failed');
      const { retry_after_ms: wait } = answer.extra;
      if ((answer.status === 429 || answer.status === 503) && typeof wait === 'number')
        reply.header('retry-after', Math.ceil(wait / 1000));
      return reply.code(answer.status).send(answer.toBody());
    },
  );

  app.setNotFoundHandler((request) => {
    // Known path, other method: 405, else 404 (spec: "Unsupported endpoints").
    const path = request.url.split('?', 1)[0]!;
    const known = ['GET', 'PUT', 'POST', 'DELETE'].some(
      (method) => method !== request.method && app.findRoute({ method: method as 'GET', url: path }) !== null,
    );
    throw unrecognized(known || app.knowsPath(path) ? 405 : 404, 'Unrecognized request');
  });

  app.decorate('knowsPath', (path: string) =>
    ['GET', 'PUT', 'POST', 'DELETE'].some((method) => app.hasRoute({ method: method as 'GET', url: path })),
  );

  // CORS for browsers: every Matrix API is open to every origin (spec: "Web Browser Clients").
  app.addHook('onRequest', async (request, reply) => {
    reply.header('access-control-allow-origin', '*');
    if (request.method === 'OPTIONS') {
      reply
        .header('access-control-allow-methods', 'GET, POST, PUT, DELETE, OPTIONS')
        .header('access-control-allow-headers', allowedHeaders(request.url))
        .header('access-control-max-age', '86400');
      return reply.code(200).send();
    }
  });

  app.decorate('draining', false);
  app.decorate('sendAway', 0);
  app.addHook('onSend', async (_request, reply) => {
    if (app.draining || (app.sendAway > 0 && app.sendAway-- > 0)) reply.header('connection', 'close');
    // JSON is UTF-8 and its media type has no charset (RFC 8259, section 11); some clients compare the whole header.
    if (reply.getHeader('content-type') === 'application/json; charset=utf-8')
      reply.header('content-type', 'application/json');
  });
  return app;
}

/** Paths under /unstable with a vendor's prefix, which holds a dot, are routes of their own, and so is that of MSC2836. */
const UNSTABLE = /^\/_matrix\/client\/unstable\/(?=[a-zA-Z_]+(?:[/?]|$))(?!event_relationships\b)/;

/**
 * Clients still call paths by the names that the API had before v3: matrix-js-sdk sends cross-signing keys to
 * /unstable/keys/device_signing/upload.
 */
function currentUrl(url: string): string {
  if (url.startsWith('/_matrix/client/r0/')) return `/_matrix/client/v3/${url.slice(19)}`;
  if (url.startsWith('/_matrix/client/unstable/')) return url.replace(UNSTABLE, '/_matrix/client/v3/');
  if (url.startsWith('/_matrix/media/r0/') || url.startsWith('/_matrix/media/v1/'))
    return url.startsWith('/_matrix/media/v1/create') ? url : `/_matrix/media/v3/${url.slice(18)}`;
  return url;
}

/** Those of the spec, and for rendezvous sessions the conditions that MSC4108 works by. */
function allowedHeaders(url: string): string {
  const headers = 'X-Requested-With, Content-Type, Authorization';
  return url.includes('/org.matrix.msc4108/rendezvous') ? `${headers}, If-Match, If-None-Match` : headers;
}

declare module 'fastify' {
  interface FastifyInstance {
    knowsPath(path: string): boolean;
    /** This process is about to stop: clients are to send their next requests to another one. */
    draining: boolean;
    /** So many of the next answers close their connections. */
    sendAway: number;
  }
}

function asMatrixError(
  error: Error & { statusCode?: number; validation?: unknown; validationContext?: string; code?: string },
): MatrixError {
  if (error instanceof MatrixError) return error;
  if (error instanceof FederationError || error instanceof UnavailableError) return error.toMatrixError();
  if (error.validation) {
    if (error.validationContext === 'body') return badJson(error.message);
    return new MatrixError(400, 'M_INVALID_PARAM', error.message);
  }
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new MatrixError(413, 'M_TOO_LARGE', 'The request body is too large');
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new MatrixError(415, 'M_UNRECOGNIZED', 'Unsupported content type');
    // PostgreSQL holds no U+0000 in text, so that nothing it is asked for can be there.
    case '22021':
      return new MatrixError(400, 'M_INVALID_PARAM', 'A parameter holds U+0000');
  }
  const status = error.statusCode ?? 500;
  if (status >= 400 && status < 500) return new MatrixError(status, 'M_UNKNOWN', error.message);
  return new MatrixError(500, 'M_UNKNOWN', 'Internal server error');
}
