import type { FastifyInstance } from 'fastify';

/** https://spec.matrix.org/v1.18/server-server-api/#get_matrixfederationv1version */
export function versionRoutes(app: FastifyInstance, deps: { name: string; version: string }): void {
  app.get('/_matrix/federation/v1/version', async () => ({
    server: { name: deps.name, version: deps.version },
  }));
}
