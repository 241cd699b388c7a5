import { MatrixError } from '@trellis/protocol/errors.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import type Fastify from 'fastify';
import type { FastifyInstance } from 'fastify';

/** An HTTP server that reads bodies and answers errors as the whole server does; what is unexpected is 500. */
export function createHttpServer(fastify: typeof Fastify): FastifyInstance {
  const app = fastify({ ajv: { customOptions: { coerceTypes: false, removeAdditional: false } } });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => {
    try {
      done(null, body === '' ? undefined : parseJson(body as string));
    } catch (error) {
      done(error as Error);
    }
  });
  app.setErrorHandler((error: Error & { validation?: unknown; statusCode?: number }, _request, reply) => {
    if (error instanceof MatrixError) return reply.code(error.status).send(error.toBody());
    if (error.validation) return reply.code(400).send({ errcode: 'M_BAD_JSON', error: error.message });
    return reply.code(error.statusCode ?? 500).send({ errcode: 'M_UNKNOWN', error: String(error.stack) });
  });
  return app;
}
