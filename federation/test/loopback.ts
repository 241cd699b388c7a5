import { Buffer } from 'node:buffer';
import { Readable } from 'node:stream';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import { Resync } from '@trellis/rooms/partial-state/resync.ts';
import { Receiver } from '@trellis/rooms/receive.ts';
import { RemoteMembershipByHandshake } from '@trellis/rooms/remote-membership.ts';
import type { RemoteServers } from '@trellis/rooms/remote-servers.ts';
import { type TestEngine, testEngine, testVerifier } from '@trellis/rooms/test/engine.ts';
import { ThirdPartyInvites } from '@trellis/rooms/third-party-invites.ts';
import Fastify, { type FastifyInstance } from 'fastify';
import { eventRoutes } from '../inbound/events.ts';
import { type InviteDeps, inviteRoutes } from '../inbound/invite.ts';
import { joinRoutes } from '../inbound/join.ts';
import { knockRoutes } from '../inbound/knock.ts';
import { leaveRoutes } from '../inbound/leave.ts';
import { stateRoutes } from '../inbound/state.ts';
import { thirdPartyInviteRoutes } from '../inbound/third-party-invite.ts';
import type { FederationClient, FederationRequest } from '../outbound/client.ts';
import { FederationError } from '../outbound/federation-error.ts';
import { remoteExchange, remoteHandshakes } from '../outbound/remote-membership.ts';
import { remoteServers } from '../outbound/remote-servers.ts';

/** A server with the handshakes of both sides, reached by its name without any network. */
export interface LoopbackServer extends TestEngine {
  readonly app: FastifyInstance;
  readonly receiver: Receiver;
  readonly remote: RemoteMembershipByHandshake;
  readonly members: Membership;
  readonly thirdPartyInvites: ThirdPartyInvites;
  /** Fetches the members of rooms that were joined without them, once it is told to. */
  newResync(): Resync;
  /** Makes a request to this server as another. */
  request(
    origin: string,
    request: Pick<FederationRequest, 'method' | 'path' | 'query' | 'body'>,
  ): Promise<Answer>;
}

export interface Answer {
  readonly status: number;
  readonly body: JsonValue;
}

interface LoopbackOptions {
  /** Joins rooms without their members first. */
  readonly partial?: boolean;
}

const silent = { info: () => {}, warn: () => {} };
const servers = new Map<string, LoopbackServer>();
/** Servers that do not answer for now. */
export const unreachable = new Set<string>();

export async function loopbackServer(
  serverName: string,
  policy: Partial<Pick<InviteDeps, 'mayInvite' | 'isLocalUser'>> & LoopbackOptions = {},
): Promise<LoopbackServer> {
  const engine = await testEngine(serverName);
  const { rooms, memberships } = engine;
  const verifier = testVerifier;
  const fetches = policy.partial ? remoteServers(loopbackClient(serverName)) : nothingToFetch;
  const receiver = new Receiver({ rooms, verifier, remote: fetches });
  const newResync = () =>
    new Resync({ rooms, receiver, log: silent, retryMs: 50, deviceListsPosition: () => 0 });
  const remote = new RemoteMembershipByHandshake({
    rooms,
    memberships,
    verifier,
    receiver,
    handshakes: remoteHandshakes(loopbackClient(serverName)),
    joins: new JoinsUnderWay(),
    ...(policy.partial ? { resync: { begin: () => {}, deviceListsPosition: () => 0 } } : {}),
  });
  const app = Fastify({ ajv: { customOptions: { coerceTypes: false, removeAdditional: false } } });
  app.setErrorHandler((error: Error & { validation?: unknown }, _request, reply) => {
    if (error instanceof MatrixError) return reply.code(error.status).send(error.toBody());
    if (error.validation) return reply.code(400).send({ errcode: 'M_BAD_JSON', error: error.message });
    return reply.code(500).send({ errcode: 'M_UNKNOWN', error: String(error.stack) });
  });
  app.decorateRequest('xMatrix', undefined);
  app.addHook('onRequest', async (request) => {
    request.xMatrix = {
      origin: String(request.headers['x-origin']),
      destination: serverName,
      key: '',
      sig: '',
    };
  });
  const deps = { rooms, receiver, verifier };
  joinRoutes(app, deps);
  leaveRoutes(app, deps);
  knockRoutes(app, deps);
  inviteRoutes(app, { ...deps, isLocalUser: async () => true, ...policy });
  const exchange = remoteExchange(loopbackClient(serverName));
  const thirdPartyInvites = new ThirdPartyInvites({ rooms, remote, exchange, ...policy });
  thirdPartyInviteRoutes(app, { rooms, thirdPartyInvites });
  stateRoutes(app, { rooms });
  eventRoutes(app, { rooms });
  await app.ready();
  const server: LoopbackServer = {
    ...engine,
    app,
    receiver,
    remote,
    members: engine.membership(remote),
    thirdPartyInvites,
    newResync,
    createRoom: (creator, request) => engine.createRoom(creator, request, remote),
    request: (origin, request) => inject(app, origin, request),
    async close() {
      servers.delete(serverName);
      await app.close();
      await engine.close();
    },
  };
  servers.set(serverName, server);
  return server;
}

async function inject(
  app: FastifyInstance,
  origin: string,
  { method, path, query, body }: Pick<FederationRequest, 'method' | 'path' | 'query' | 'body'>,
): Promise<Answer> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {}))
    for (const item of Array.isArray(value) ? value : [value])
      if (item !== undefined) params.append(name, String(item));
  const answer = await app.inject({
    method,
    url: `${path}?${params}`,
    headers: { 'x-origin': origin, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
    ...(body === undefined ? {} : { payload: canonicalJson(body, { lax: true }) }),
  });
  return { status: answer.statusCode, body: answer.json() as JsonValue };
}

/** The client of one server: finds the others by name. */
function loopbackClient(serverName: string): FederationClient {
  const requestJson = async (request: FederationRequest): Promise<JsonValue> => {
    const { destination } = request;
    const server = servers.get(destination);
    if (!server || unreachable.has(destination))
      throw new FederationError(destination, 'unreachable', 'no such server');
    const { status, body } = await server.request(serverName, request);
    if (status >= 300)
      throw new FederationError(destination, 'http', `answered ${status}`, {
        status,
        body: body as JsonObject,
      });
    return body;
  };
  const stream = async (
    request: FederationRequest,
    read: (answer: { body: Readable }) => Promise<unknown>,
  ): Promise<unknown> =>
    read({ body: Readable.from([Buffer.from(JSON.stringify(await requestJson(request)))]) });
  return { serverName, requestJson, request: requestJson, stream } as unknown as FederationClient;
}

const fail = async (): Promise<never> => {
  throw new Error('nothing was to be fetched');
};
const nothingToFetch: RemoteServers = {
  event: fail,
  missingEvents: fail,
  stateIds: fail,
  state: fail,
  eventAuth: fail,
  backfill: fail,
  timestampToEvent: fail,
};
