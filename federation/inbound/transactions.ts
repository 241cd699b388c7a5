import type { JsonObject, Pdu } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { IncomingPdus, PduResults } from '@trellis/rooms/incoming-pdus.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { originOf } from './authentication.ts';
import { type HandleEdus, MAX_EDUS } from './edus.ts';

export interface TransactionRoutesDeps {
  readonly pdus: IncomingPdus;
  readonly edus: HandleEdus;
}

const MAX_PDUS = 50;
/**
 * Answers that are remembered, and for how long: a server repeats a transaction until it has the answer. Another process
 * does not know of them: it finds the events done, or under way where their room is, and messages to devices taken in.
 */
const MAX_ANSWERS = 20_000;
const ANSWERS_TTL = 60 * 60_000;
/** What the EDUs of a transaction may take before it is answered without them, in milliseconds. */
const EDU_PATIENCE = 15_000;

interface Transaction {
  pdus?: Pdu[];
  edus?: JsonObject[];
}

const body = Type.Object({
  pdus: Type.Optional(Type.Array(Type.Object({}), { maxItems: MAX_PDUS })),
  edus: Type.Optional(Type.Array(Type.Object({}), { maxItems: MAX_EDUS })),
});

/**
 * Events and ephemeral data that other servers push.
 * https://spec.matrix.org/v1.18/server-server-api/#transactions
 */
export function transactionRoutes(app: FastifyInstance, deps: TransactionRoutesDeps): void {
  const answers = new RecentlyUsed<string, Promise<{ pdus: PduResults }>>(MAX_ANSWERS, { ttl: ANSWERS_TTL });

  app.put<{ Params: { txnId: string }; Body: Transaction }>(
    '/_matrix/federation/v1/send/:txnId',
    { schema: { body }, bodyLimit: 10 * 1024 * 1024 },
    async (request) => {
      const origin = originOf(request);
      const key = `${origin} ${request.params.txnId}`;
      const known = answers.get(key);
      if (known) return known;
      const answer = take(deps, origin, request.body);
      answers.set(key, answer);
      // What failed may be tried again under the same id.
      answer.catch(() => answers.delete(key));
      return answer;
    },
  );
}

async function take(
  { pdus, edus }: TransactionRoutesDeps,
  origin: string,
  transaction: Transaction,
): Promise<{ pdus: PduResults }> {
  const ephemeral = withinPatience(edus(origin, transaction.edus ?? []));
  const [results] = await Promise.all([pdus.take(origin, transaction.pdus ?? []), ephemeral]);
  return { pdus: results };
}

async function withinPatience(work: Promise<void>): Promise<void> {
  const { promise: tooLong, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, EDU_PATIENCE);
  try {
    await Promise.race([work, tooLong]);
  } finally {
    clearTimeout(timer);
  }
}
