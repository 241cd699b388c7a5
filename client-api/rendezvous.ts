import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { OF_SESSION, type RendezvousSessions } from './rendezvous-sessions.ts';

const PATH = '/_matrix/client/unstable/io.element.msc4388/rendezvous';

const createBody = Type.Object({ data: Type.String() });
const updateBody = Type.Object({ sequence_token: Type.String(), data: Type.String() });

interface Update {
  Params: { id: string; txnId?: string };
  Body: { sequence_token: string; data: string };
}

/** The last update of each session, which a client may send again when it did not see the answer. */
const MAX_REMEMBERED = 5_000;

/** Rendezvous sessions for signing in by a QR code, as MSC4388 has them. */
export function rendezvousRoutes(
  app: FastifyInstance,
  { sessions }: { readonly sessions: RendezvousSessions },
): void {
  const config = { auth: 'none', ...OF_SESSION } as const;
  const lastUpdates = new RecentlyUsed<string, { request: string; sequence: string }>(MAX_REMEMBERED);

  app.get(PATH, { config: { auth: 'optional', guests: true } }, async () => ({ create_available: true }));

  app.post<{ Body: { data: string } }>(
    PATH,
    { schema: { body: createBody }, config: { auth: 'optional', guests: true, rateLimit: 'login' } },
    async (request) => {
      const { id, sequence, expiresTs } = sessions.create(request.body.data);
      return { id, sequence_token: sequence, expires_ts: expiresTs };
    },
  );

  app.get<{ Params: { id: string } }>(`${PATH}/:id`, { config }, async (request, reply) => {
    refuseNavigation(request);
    const { data, sequence, expiresTs } = sessions.get(request.params.id);
    reply.header('cache-control', 'no-store, no-transform');
    return { data, sequence_token: sequence, expires_ts: expiresTs };
  });

  // Newer drafts name the transaction; before them, the same update again is taken for a repetition.
  for (const path of [`${PATH}/:id`, `${PATH}/:id/:txnId`])
    app.put<Update>(path, { schema: { body: updateBody }, config }, async ({ params, body }) => {
      const repeatable = JSON.stringify([params.txnId ?? null, body.sequence_token, body.data]);
      const session = sessions.update(params.id, body.sequence_token, body.data);
      if (!session) {
        const last = lastUpdates.get(params.id);
        if (last?.request === repeatable && last.sequence === sessions.get(params.id).sequence)
          return { sequence_token: last.sequence };
        throw new MatrixError(
          409,
          'IO_ELEMENT_MSC4388_CONCURRENT_WRITE',
          'The sequence token is another one by now',
        );
      }
      lastUpdates.set(params.id, { request: repeatable, sequence: session.sequence });
      return { sequence_token: session.sequence };
    });

  app.delete<{ Params: { id: string } }>(`${PATH}/:id`, { config }, async ({ params }) => {
    sessions.delete(params.id);
    return {};
  });
}

/** Anybody may have written it, so that no browser is to show it (MSC4388: "Unsafe content"). */
function refuseNavigation({ headers }: FastifyRequest): void {
  const destination = headers['sec-fetch-dest'];
  if (
    (destination !== undefined && destination !== 'empty') ||
    headers['sec-fetch-mode'] === 'navigate' ||
    headers['sec-fetch-user'] === '?1' ||
    headers['sec-fetch-site'] === 'none'
  )
    throw forbidden('A rendezvous session is not for being shown');
}
