import type { FastifyInstance } from 'fastify';

/**
 * For load balancers and who watches over processes: whether this process is to be sent requests, and whether it lives.
 * One that does not is to be started again.
 */
export function healthRoutes(app: FastifyInstance): void {
  app.get('/health', async (_request, reply) => {
    reply.type('text/plain');
    return app.draining ? reply.code(503).send('stopping') : 'OK';
  });
  app.get('/health/live', async (_request, reply) => {
    reply.type('text/plain');
    return 'OK';
  });
}
