import { after } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify';

/** Routes without a network before them, closed at the end of the test. */
export function testApp(): FastifyInstance {
  const app = bareApp();
  after(() => app.close());
  return app;
}

/** The same, for who closes it: errors are answered as the HTTP server does. */
export function bareApp(): FastifyInstance {
  const app = Fastify({ trustProxy: true, ajv: { customOptions: { coerceTypes: false } } });
  app.setErrorHandler((error: Error & { validation?: unknown }, _request, reply) => {
    if (error instanceof MatrixError) return reply.code(error.status).send(error.toBody());
    if (error.validation) return reply.code(400).send({ errcode: 'M_BAD_JSON', error: error.message });
    return reply.code(500).send({ errcode: 'M_UNKNOWN', error: error.stack });
  });
  return app;
}

export interface TestAnswer {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: the tests look at answers of every shape
  readonly body: any;
}

export async function ask(
  app: FastifyInstance,
  method: InjectOptions['method'],
  url: string,
  { token, body, ip }: { token?: string; body?: object; ip?: string } = {},
): Promise<TestAnswer> {
  const headers = {
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
    ...(ip !== undefined && { 'x-forwarded-for': ip }),
  };
  const response = await app.inject({ method, url, headers, ...(body && { payload: body }) });
  return { status: response.statusCode, body: response.json() };
}
