import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Duty } from './cluster.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * Which process answers requests of this route: the owner of a duty. One that comes to another process is passed on
     * after it was authenticated. Bodies are JSON.
     */
    duty?: Duty;
    /** The key of the duty. */
    key?: (request: FastifyRequest) => string;
  }
  interface FastifyRequest {
    /** Of a request that another process has passed on: that one is about to stop, and wants the answer now. */
    hurry?: AbortSignal | undefined;
  }
}

/** Calls back when nobody waits for what may come later: the client has hung up, or an answer is wanted at once. */
export function onHurry(request: FastifyRequest, reply: FastifyReply, listener: () => void): void {
  reply.raw.once('close', () => {
    // Also closed once all is said.
    if (!reply.sent) listener();
  });
  if (request.hurry?.aborted) listener();
  else request.hurry?.addEventListener('abort', listener, { once: true });
}
