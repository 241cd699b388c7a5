import type { FastifyRequest } from 'fastify';
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
}
