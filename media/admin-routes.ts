import { invalidParam, missingParam, notFound } from '@trellis/protocol/errors.ts';
import { isServerName } from '@trellis/protocol/identifiers.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { boolean, integer, type MediaQuery } from './media-query.ts';
import type { MediaName } from './media-table.ts';
import type { MediaModeration } from './moderation.ts';
import { type MediaRecord, ORDERS, type Page } from './moderation-table.ts';
import { isMediaId, type MediaRepository } from './repository.ts';

export interface MediaAdminDeps {
  readonly media: MediaRepository;
  readonly moderation: MediaModeration;
  /** The administrator that a request comes from; throws M_FORBIDDEN for everyone else. */
  administratorOf(request: FastifyRequest): string;
}

interface Params {
  serverName: string;
  mediaId: string;
  roomId: string;
  userId: string;
}

type AdminRequest = FastifyRequest<{ Params: Params; Querystring: MediaQuery }>;

const BASE = '/_synapse/admin/v1';
const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 1000;
/** Times before this are seconds, by mistake: as milliseconds they lie in 1970. */
const EARLIEST_TIME = 30_000_000_000;

/**
 * Media for administrators. The specification has no such endpoints; these are Synapse's, which moderation bots call.
 * https://element-hq.github.io/synapse/latest/admin_api/media_admin_api.html
 */
export function mediaAdminRoutes(app: FastifyInstance, deps: MediaAdminDeps): void {
  app.register(async (scope) => {
    // Before anything else is looked at: others learn nothing.
    scope.addHook('preValidation', async (request) => void deps.administratorOf(request));
    quarantineRoutes(scope, deps);
    listRoutes(scope, deps);
    deletionRoutes(scope, deps);
  });
}

function quarantineRoutes(
  app: FastifyInstance,
  { media, moderation, administratorOf }: MediaAdminDeps,
): void {
  app.post(`${BASE}/media/quarantine/:serverName/:mediaId`, async (request: AdminRequest) => {
    await moderation.quarantine([nameOf(request)], administratorOf(request));
    return {};
  });

  app.post(`${BASE}/media/unquarantine/:serverName/:mediaId`, async (request: AdminRequest) => {
    await moderation.unquarantine(nameOf(request));
    return {};
  });

  for (const path of ['/room/:roomId/media/quarantine', '/quarantine_media/:roomId'])
    app.post(BASE + path, async (request: AdminRequest) => ({
      num_quarantined: await moderation.quarantineRoom(request.params.roomId, administratorOf(request)),
    }));

  app.post(`${BASE}/user/:userId/media/quarantine`, async (request: AdminRequest) => ({
    num_quarantined: await moderation.quarantineUser(localUser(request, media), administratorOf(request)),
  }));

  for (const [word, value] of [
    ['protect', true],
    ['unprotect', false],
  ] as const)
    app.post(`${BASE}/media/${word}/:mediaId`, async ({ params }: AdminRequest) => {
      if (!(await moderation.protect(params.mediaId, value))) throw notFound('Unknown media');
      return {};
    });
}

function listRoutes(app: FastifyInstance, { media, moderation }: MediaAdminDeps): void {
  app.get(`${BASE}/media/:serverName/:mediaId`, async (request: AdminRequest) => {
    const record = await moderation.find(nameOf(request));
    if (!record) throw notFound('Unknown media');
    return {
      media_info: {
        ...asJson(record),
        media_origin: record.origin,
        user_id: record.userId,
        authenticated: record.authenticated,
        sha256: record.sha256?.toString('hex') ?? null,
      },
    };
  });

  app.get(`${BASE}/room/:roomId/media`, async ({ params }: AdminRequest) => {
    const names = await moderation.inRoom(params.roomId);
    const urisWhere = (isLocal: boolean) =>
      names
        .filter(({ origin }) => (origin === media.serverName) === isLocal)
        .map(({ origin, mediaId }) => `mxc://${origin}/${mediaId}`);
    return { local: urisWhere(true), remote: urisWhere(false) };
  });

  app.get(`${BASE}/users/:userId/media`, async (request: AdminRequest) => {
    const page = pageOf(request.query);
    const { uploads, total } = await moderation.uploadsOf(localUser(request, media), page);
    const next = page.from + uploads.length;
    return {
      media: uploads.map(asJson),
      total,
      ...(next < total && uploads.length > 0 && { next_token: next }),
    };
  });
}

function deletionRoutes(app: FastifyInstance, { media, moderation }: MediaAdminDeps): void {
  app.delete(`${BASE}/media/:serverName/:mediaId`, async (request: AdminRequest) => {
    const name = nameOf(request);
    requireLocal(name.origin, media);
    if (!(await moderation.find(name))) throw notFound('Unknown media');
    await moderation.delete([name]);
    return deleted([name]);
  });

  app.delete(`${BASE}/users/:userId/media`, async (request: AdminRequest) => {
    const { uploads } = await moderation.uploadsOf(localUser(request, media), pageOf(request.query));
    await moderation.delete(uploads);
    return deleted(uploads);
  });

  for (const path of ['/media/delete', '/media/:serverName/delete'])
    app.post(BASE + path, async ({ params, query }: AdminRequest) => {
      requireLocal(params.serverName ?? media.serverName, media);
      const names = await media.removeUnused({
        where: 'local',
        before: timeOf(query),
        largerThan: query.size_gt === undefined ? 0 : integer('size_gt', query.size_gt),
        avatarsToo: boolean('keep_profiles', query.keep_profiles) === false,
      });
      return deleted(names);
    });

  app.post(`${BASE}/purge_media_cache`, async ({ query }: AdminRequest) => ({
    deleted: (await media.removeUnused({ where: 'remote', before: timeOf(query) })).length,
  }));
}

function nameOf({ params: { serverName: origin, mediaId } }: AdminRequest): MediaName {
  if (!isServerName(origin) || !isMediaId(mediaId)) throw invalidParam('That is no name of media');
  return { origin, mediaId };
}

function localUser({ params: { userId } }: AdminRequest, { serverName }: MediaRepository): string {
  if (!userId.startsWith('@') || !userId.endsWith(`:${serverName}`))
    throw invalidParam('That is no user of this server');
  return userId;
}

function requireLocal(origin: string, { serverName }: MediaRepository): void {
  if (origin !== serverName) throw invalidParam('Only media of this server can be deleted like this');
}

function timeOf({ before_ts: text }: MediaQuery): number {
  if (text === undefined) throw missingParam('Missing before_ts');
  const time = integer('before_ts', text);
  if (time < EARLIEST_TIME) throw invalidParam('before_ts is a time in milliseconds');
  return time;
}

function pageOf(query: MediaQuery): Page {
  const { order_by: orderBy, dir, from, limit } = query;
  if (orderBy !== undefined && !(typeof orderBy === 'string' && Object.hasOwn(ORDERS, orderBy)))
    throw invalidParam(`order_by is none of ${Object.keys(ORDERS).join(', ')}`);
  if (dir !== undefined && dir !== 'f' && dir !== 'b') throw invalidParam('dir is neither "f" nor "b"');
  return {
    from: from === undefined ? 0 : integer('from', from),
    limit: limit === undefined ? DEFAULT_LIMIT : Math.min(integer('limit', limit), MAX_LIMIT),
    orderBy: (orderBy as keyof typeof ORDERS | undefined) ?? 'created_ts',
    // The newest first, to those who have no wishes.
    backwards: dir === undefined ? orderBy === undefined : dir === 'b',
  };
}

function asJson(record: MediaRecord): Record<string, unknown> {
  return {
    media_id: record.mediaId,
    media_type: record.contentType,
    media_length: record.size,
    upload_name: record.filename,
    created_ts: record.createdTs,
    last_access_ts: record.lastAccessTs,
    quarantined_by: record.quarantinedBy,
    safe_from_quarantine: record.protected,
  };
}

function deleted(names: readonly MediaName[]): { deleted_media: string[]; total: number } {
  return { deleted_media: names.map(({ mediaId }) => mediaId), total: names.length };
}
