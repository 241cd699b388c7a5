import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { type SigningKey, signJson } from '@trellis/protocol/signing.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { type KeyFetcher, limitConcurrency } from '../key-fetcher.ts';
import type { OwnKey } from '../key-ring.ts';
import type { KeyStore, StoredKeyResponse } from '../key-store.ts';
import { isObject } from '../outbound/answers.ts';
import { parseServerAddress } from '../server-name.ts';

export interface KeyRoutesDeps {
  serverName: string;
  signingKey: SigningKey;
  /** The signing key's public half and keys that were used before it. */
  ownKeys: readonly OwnKey[];
  store: KeyStore;
  fetcher: KeyFetcher;
  clock?: () => number;
}

const HOUR = 3_600_000;
const WEEK = 7 * 24 * HOUR;
/** Far below the 7 days that others cap it to, so that a lost key can be withdrawn within a day. */
const OWN_VALIDITY = 24 * HOUR;
const MAX_SERVERS = 100;
const FETCHES_AT_A_TIME = 16;

/**
 * This server's keys, and the notary.
 * https://spec.matrix.org/v1.18/server-server-api/#retrieving-server-keys
 */
export function keyRoutes(app: FastifyInstance, deps: KeyRoutesDeps): void {
  const clock = deps.clock ?? Date.now;
  let own: { response: JsonObject; refreshAt: number } | undefined;
  const ownResponse = (): JsonObject => {
    const now = clock();
    if (!own || own.refreshAt <= now)
      own = { response: ownKeyResponse(deps, now + OWN_VALIDITY), refreshAt: now + HOUR };
    return own.response;
  };

  // Old servers ask for one key by its id.
  for (const path of ['/_matrix/key/v2/server', '/_matrix/key/v2/server/:keyId'])
    app.get(path, async (_request, reply) =>
      // In the form that is signed: some verify the text as it comes.
      reply.type('application/json; charset=utf-8').send(canonicalJson(ownResponse())),
    );

  app.get<{ Params: { serverName: string }; Querystring: { minimum_valid_until_ts?: string } }>(
    '/_matrix/key/v2/query/:serverName',
    async (request) => {
      const minimum = request.query.minimum_valid_until_ts;
      const validUntil = minimum === undefined ? clock() : Number(minimum);
      if (!Number.isSafeInteger(validUntil)) throw invalidParam('minimum_valid_until_ts must be an integer');
      const wanted = new Map([[request.params.serverName, validUntil]]);
      return { server_keys: await notarise(deps, wanted, ownResponse, clock()) };
    },
  );

  const schema = {
    body: Type.Object({
      server_keys: Type.Record(Type.String(), Type.Record(Type.String(), Type.Unknown())),
    }),
  };
  app.post<{ Body: { server_keys: Record<string, JsonObject> } }>(
    '/_matrix/key/v2/query',
    { schema },
    async (request) => {
      const servers = Object.entries(request.body.server_keys);
      if (servers.length > MAX_SERVERS) throw invalidParam(`More than ${MAX_SERVERS} servers`);
      const now = clock();
      const wanted = new Map(servers.map(([server, keys]) => [server, latestNeed(keys, now)]));
      return { server_keys: await notarise(deps, wanted, ownResponse, now) };
    },
  );
}

function latestNeed(keys: JsonObject, now: number): number {
  const needs = Object.values(keys).map((criteria) =>
    isObject(criteria) && typeof criteria.minimum_valid_until_ts === 'number'
      ? criteria.minimum_valid_until_ts
      : now,
  );
  return needs.length === 0 ? now : Math.max(...needs.slice(0, 1000));
}

/** What the servers said of their keys, asked again where it is about to run out, with this server's signature. */
async function notarise(
  deps: KeyRoutesDeps,
  wanted: ReadonlyMap<string, number>,
  ownResponse: () => JsonObject,
  now: number,
): Promise<JsonObject[]> {
  const others = [...wanted.keys()].filter((name) => name !== deps.serverName && parseServerAddress(name));
  let known = await deps.store.responses(others);
  const stale = others.filter((name) => isStale(known.get(name), wanted.get(name)!, now));
  if (stale.length > 0) {
    await limitConcurrency(FETCHES_AT_A_TIME, stale, async (name) => {
      await deps.fetcher.fetchDirect(name);
    });
    known = await deps.store.responses(others);
  }
  const answers: JsonObject[] = [...known.values()].map(({ response }) =>
    signJson(response, deps.serverName, deps.signingKey),
  );
  if (wanted.has(deps.serverName)) answers.push(ownResponse());
  return answers;
}

/**
 * An answer is good for half its life: what is handed on must not run out at once. No life is longer than 7 days
 * (spec: `valid_until_ts`), or a key that was withdrawn would be handed on for as long as its server once said.
 */
function isStale(known: StoredKeyResponse | undefined, minimum: number, now: number): boolean {
  if (!known) return true;
  const life = Math.min(known.validUntilTs - known.fetchedTs, WEEK);
  return known.validUntilTs < minimum || now > known.fetchedTs + life / 2;
}

function ownKeyResponse(deps: KeyRoutesDeps, validUntil: number): JsonObject {
  const verifyKeys: JsonObject = {};
  const oldVerifyKeys: JsonObject = {};
  for (const { keyId, publicKey, expiredTs } of deps.ownKeys) {
    if (expiredTs === undefined) verifyKeys[keyId] = { key: publicKey };
    else oldVerifyKeys[keyId] = { key: publicKey, expired_ts: expiredTs };
  }
  return signJson(
    {
      server_name: deps.serverName,
      verify_keys: verifyKeys,
      old_verify_keys: oldVerifyKeys,
      valid_until_ts: validUntil,
    },
    deps.serverName,
    deps.signingKey,
  );
}
