import type { JsonObject } from '@trellis/protocol/event.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import type { Registrar } from './registrar.ts';

export interface AppserviceAdminDeps {
  readonly registrar: Registrar;
  /** Throws M_FORBIDDEN for everyone but administrators. */
  requireAdministrator(request: FastifyRequest): void;
}

interface Params {
  id: string;
}

const BASE = '/_trellis/admin/v1/application_services';
const params = Type.Object({ id: Type.String({ minLength: 1, maxLength: 255, pattern: '^[^\\0]*$' }) });
const body = Type.Object({}, { additionalProperties: true });

/** Registering application services without files and restarts. The specification leaves open how that is done. */
export function appserviceAdminRoutes(
  app: FastifyInstance,
  { registrar, requireAdministrator }: AppserviceAdminDeps,
): void {
  app.register(async (scope) => {
    // Before anything else is looked at: others learn nothing.
    scope.addHook('preValidation', async (request) => requireAdministrator(request));

    scope.get(BASE, async () => ({ application_services: registrar.list() }));

    scope.get<{ Params: Params }>(`${BASE}/:id`, { schema: { params } }, async (request) =>
      registrar.get(request.params.id),
    );

    scope.put<{ Params: Params; Body: JsonObject }>(
      `${BASE}/:id`,
      { schema: { params, body } },
      async (request) => registrar.put(request.params.id, request.body),
    );

    scope.delete<{ Params: Params }>(`${BASE}/:id`, { schema: { params } }, async (request) => {
      await registrar.delete(request.params.id);
      return {};
    });
  });
}
