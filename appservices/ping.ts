import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { type AppserviceClient, UnreachableError } from './client.ts';
import type { Appservice, Appservices } from './registry.ts';

export interface PingDeps {
  readonly services: Appservices;
  readonly client: AppserviceClient;
  /** Id of the application service whose token an authenticated request was made with. */
  readonly appserviceOf: (request: FastifyRequest) => string | undefined;
  /** The service answers: what waits for it need wait no longer. */
  readonly onAnswer: (service: Appservice) => void;
}

const TIMEOUT_MS = 15_000;
/** Of a wrong answer that is passed on. */
const MAX_BODY_CHARS = 10_000;

const body = Type.Optional(Type.Object({ transaction_id: Type.Optional(Type.String()) }));

/** `/appservice/{appserviceId}/ping` (Application Service API, "Pinging"). */
export function pingRoutes(
  app: FastifyInstance,
  { services, client, appserviceOf, onAnswer }: PingDeps,
): void {
  app.post<{ Params: { appserviceId: string }; Body: { transaction_id?: string } | undefined }>(
    '/_matrix/client/v1/appservice/:appserviceId/ping',
    { schema: { body } },
    async (request) => {
      const id = appserviceOf(request);
      const service = id === undefined ? undefined : services.get(id);
      if (!service || service.id !== request.params.appserviceId)
        throw forbidden('This is not the token of that application service');
      if (service.registration.url === undefined)
        throw new MatrixError(400, 'M_URL_NOT_SET', 'The application service has no URL');
      const durationMs = await ping(client, service, request.body?.transaction_id);
      onAnswer(service);
      return { duration_ms: durationMs };
    },
  );
}

async function ping(client: AppserviceClient, service: Appservice, transactionId?: string): Promise<number> {
  const began = performance.now();
  const answer = await client
    .request(service, {
      method: 'POST',
      paths: ['/_matrix/app/v1/ping'],
      body: JSON.stringify(transactionId === undefined ? {} : { transaction_id: transactionId }),
      timeoutMs: TIMEOUT_MS,
    })
    .catch((error: unknown) => {
      if (!(error instanceof UnreachableError)) throw error;
      throw error.timedOut
        ? new MatrixError(504, 'M_CONNECTION_TIMEOUT', 'The application service did not answer in time')
        : new MatrixError(502, 'M_CONNECTION_FAILED', 'The application service could not be reached');
    });
  if (answer.status !== 200)
    throw new MatrixError(502, 'M_BAD_STATUS', `The ping was answered with status ${answer.status}`, {
      status: answer.status,
      body: answer.text.slice(0, MAX_BODY_CHARS),
    });
  return Math.round(performance.now() - began);
}
