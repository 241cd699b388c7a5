import { onHurry } from '@trellis/cluster/owned-routes.ts';
import '@trellis/cluster/owned-routes.ts';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from '../authentication.ts';
import { sendJson } from '../client-events.ts';
import { type Asker, slidingAnswer } from './answer.ts';
import { Connections } from './connection.ts';
import { olderSyncRequest, type SlidingQuery, type SlidingRequest, syncRequest } from './request.ts';
import { type OlderSyncBody, olderSyncBody, type SyncBody, syncBody } from './schemas.ts';
import { RoomLists } from './user-rooms.ts';
import type { SlidingSources } from './view.ts';

/** Connections live in one process for each user. */
const config = {
  guests: true,
  duty: 'user',
  key: (request: FastifyRequest) => requesterOf(request).userId,
} as const;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ pos: text, timeout: text, set_presence: text });

/** Simplified sliding sync (MSC4186), as it was merged and as clients spoke it before. */
export function slidingSyncRoutes(app: FastifyInstance, sources: SlidingSources): void {
  const sliding = new SlidingSync(sources);

  app.post<{ Body: SyncBody }>(
    '/_matrix/client/v4/sync',
    { schema: { body: syncBody }, config },
    (request, reply) => sliding.sync(request, reply, syncRequest(request.body)),
  );

  app.post<{ Body: OlderSyncBody; Querystring: SlidingQuery }>(
    '/_matrix/client/unstable/org.matrix.simplified_msc3575/sync',
    { schema: { body: olderSyncBody, querystring }, config },
    (request, reply) =>
      sliding.sync(
        request,
        reply,
        olderSyncRequest(request.body, request.query, requesterOf(request).userId),
      ),
  );
}

class SlidingSync {
  readonly #deps: SlidingSources & { readonly lists: RoomLists };
  readonly #connections = new Connections();

  constructor(sources: SlidingSources) {
    this.#deps = { ...sources, lists: new RoomLists(sources) };
  }

  async sync(http: FastifyRequest, reply: FastifyReply, request: SlidingRequest): Promise<FastifyReply> {
    const { userId, deviceId, tokenId } = requesterOf(http);
    const { sources } = this.#deps;
    const name = { userId, deviceId: deviceId ?? tokenId, connId: request.connId };
    const connection =
      request.pos === undefined ? this.#connections.create(name) : this.#connections.get(name);
    const underWay = connection.begin(request.pos);
    this.#connections.measure(name);
    onHurry(http, reply, () => underWay.abort());
    const { done } = sources.touchPresence(userId, deviceId ?? '', request.presence);
    try {
      return sendJson(reply, await this.#poll({ userId, deviceId, connection }, request, underWay));
    } finally {
      done();
      connection.end(underWay);
    }
  }

  /** Answers at once when there is something to tell, else as soon as there is, else when the time is up. */
  async #poll(asker: Asker, request: SlidingRequest, underWay: AbortController): Promise<string> {
    const { notifier } = this.#deps.sources;
    const { connection, userId } = asker;
    const deadline = Date.now() + request.timeout;
    // Begin to follow the user before looking, so that nothing falls in between.
    notifier.feed(userId);
    for (;;) {
      const { parts, empty, to, changes } = await slidingAnswer(this.#deps, asker, request);
      const left = deadline - Date.now();
      const isDue = !empty || request.pos === undefined || left <= 0;
      if (isDue || underWay.signal.aborted || notifier.closing)
        return `{"pos":"${connection.answer(underWay, to, changes)}",${parts.join(',')}}`;
      connection.advance(underWay, to, changes);
      await notifier.wait(userId, to, left, underWay.signal);
    }
  }
}
