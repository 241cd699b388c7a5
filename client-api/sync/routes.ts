import { Buffer } from 'node:buffer';
import { setTimeout as delay } from 'node:timers/promises';
import { onHurry } from '@trellis/cluster/owned-routes.ts';
import { invalidParam } from '@trellis/protocol/errors.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from '../authentication.ts';
import { LazyMembers } from './lazy-members.ts';
import type { SyncSources } from './sources.ts';
import { answerSync } from './sync.ts';
import { parseSyncToken } from './token.ts';
import type { SyncRequest } from './view.ts';

/** Clients may ask to be kept waiting this long at the most, in milliseconds. */
const MAX_TIMEOUT = 5 * 60_000;

/** How long a client's first sync waits for others to know that its user is there, in milliseconds. */
const PRESENCE_LIMIT = 500;

export interface SyncDeps {
  readonly sources: SyncSources;
  /** Aggregations of relations for events, as JSON text by event id. */
  readonly relations: (
    events: readonly StoredEvent[],
    userId: string,
  ) => Promise<ReadonlyMap<string, string>>;
}

const querystring = Type.Object({
  filter: Type.Optional(Type.String()),
  since: Type.Optional(Type.String()),
  full_state: Type.Optional(Type.String()),
  set_presence: Type.Optional(Type.String()),
  timeout: Type.Optional(Type.String()),
  use_state_after: Type.Optional(Type.String()),
  'org.matrix.msc4222.use_state_after': Type.Optional(Type.String()),
});

type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** `GET /sync` (spec: "Syncing"). */
export function syncRoutes(app: FastifyInstance, { sources, relations }: SyncDeps): void {
  const lazy = new LazyMembers();

  app.get<{ Querystring: Query }>(
    '/_matrix/client/v3/sync',
    { schema: { querystring }, config: { guests: true } },
    async (request, reply) => {
      const { userId, deviceId = '' } = requesterOf(request);
      const { query } = request;
      const since = query.since === undefined || query.since === '' ? undefined : parseSyncToken(query.since);
      const syncRequest: SyncRequest = {
        sources,
        userId,
        deviceId,
        filter: await sources.filter(userId, query.filter),
        lazy,
        relations,
        since,
        fullState: query.full_state === 'true',
        stateAfter: stateAfterOf(query),
      };
      const presence = presenceOf(query.set_presence);
      if (since === undefined) lazy.forget(userId, deviceId);
      // What the client has synced past it has received.
      else {
        await sources.toDeviceReceived(userId, deviceId, since.toDevice);
        sources.confirmed?.(userId, since.events);
      }

      const aborted = new AbortController();
      onHurry(request, reply, () => aborted.abort());
      const { told, done } = sources.touchPresence(userId, deviceId, presence);
      // So that a client that has just begun is not woken by itself.
      if (since === undefined && told)
        await Promise.race([told, delay(PRESENCE_LIMIT, undefined, { ref: false })]);
      const json = await poll(syncRequest, timeoutOf(query.timeout), aborted.signal).finally(done);
      reply.header('content-type', 'application/json');
      return reply.send(Buffer.from(json));
    },
  );
}

/** Answers at once when there is something to tell, else as soon as there is, else when the time is up. */
async function poll(request: SyncRequest, timeoutMs: number, signal: AbortSignal): Promise<string> {
  const { notifier } = request.sources;
  const deadline = Date.now() + timeoutMs;
  if (request.since) await notifier.reach(request.since);
  // Begin to follow the user before looking, so that nothing falls in between.
  notifier.feed(request.userId);
  for (let since = request.since; ; ) {
    const { to, ...answer } = await answerSync({ ...request, since });
    const left = deadline - Date.now();
    if (
      !answer.empty ||
      request.since === undefined ||
      request.fullState ||
      left <= 0 ||
      signal.aborted ||
      notifier.closing
    )
      return answer.json;
    await notifier.wait(request.userId, to, left, signal);
    since = to;
  }
}

function timeoutOf(text: string | undefined): number {
  if (text === undefined) return 0;
  const timeout = Number(text);
  if (!Number.isSafeInteger(timeout) || timeout < 0)
    throw invalidParam('timeout is not a number of milliseconds');
  return Math.min(timeout, MAX_TIMEOUT);
}

function presenceOf(text: string | undefined): 'online' | 'unavailable' | 'offline' {
  if (text === undefined) return 'online';
  if (text === 'online' || text === 'unavailable' || text === 'offline') return text;
  throw invalidParam('set_presence is not one of online, unavailable, offline');
}

function stateAfterOf(query: Query): SyncRequest['stateAfter'] {
  if (query.use_state_after === 'true') return 'state_after';
  if (query['org.matrix.msc4222.use_state_after'] === 'true') return 'org.matrix.msc4222.state_after';
  return 'state';
}
