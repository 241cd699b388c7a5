import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { Database } from '@trellis/storage/database.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import Fastify, { type FastifyInstance } from 'fastify';
import { mediaAdminRoutes } from '../admin-routes.ts';
import { DiskStore } from '../disk-store.ts';
import { downloadRoutes } from '../download-routes.ts';
import { federationMediaRoutes } from '../federation-routes.ts';
import { MediaModeration } from '../moderation.ts';
import { MediaRepository } from '../repository.ts';
import { type ThumbnailLimits, Thumbnails } from '../thumbnails.ts';
import { uploadRoutes } from '../upload-routes.ts';
import type { UrlPreviews } from '../url-previews.ts';

export const SERVER = 'here.example';
/** Whom `appOn` takes for an administrator. */
export const ADMIN = '@admin:here.example';

export interface Bench {
  readonly db: Database;
  readonly store: DiskStore;
  readonly folder: string;
  close(): Promise<void>;
}

/** A database and a folder for media. */
export async function openBench(): Promise<Bench> {
  const opened = await testDatabase();
  const folder = await mkdtemp(join(tmpdir(), 'trellis-media-'));
  const store = await DiskStore.open(folder);
  return {
    db: opened.db,
    store,
    folder,
    async close() {
      await opened.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

type RepositoryOptions = ConstructorParameters<typeof MediaRepository>[0];

export function repositoryOn(bench: Bench, options: Partial<RepositoryOptions> = {}): MediaRepository {
  return new MediaRepository({ serverName: SERVER, db: bench.db, store: bench.store, ...options });
}

/** The routes over a repository; the requester is whom the header `x-user` names. */
export function appOn(
  bench: Bench,
  options: Partial<RepositoryOptions> & {
    thumbnailLimits?: Partial<ThumbnailLimits>;
    previews?: (media: MediaRepository) => UrlPreviews;
  } = {},
): { app: FastifyInstance; media: MediaRepository } {
  const media = repositoryOn(bench, options);
  const thumbnails = new Thumbnails({ db: bench.db, media, limits: options.thumbnailLimits });
  const app = Fastify();
  app.setErrorHandler((error, _request, reply) =>
    error instanceof MatrixError
      ? reply.code(error.status).send(error.toBody())
      : reply.code(500).send({ errcode: 'M_UNKNOWN', error: String(error) }),
  );
  uploadRoutes(app, { media, uploaderOf: (request) => String(request.headers['x-user'] ?? '@alice:here') });
  downloadRoutes(app, { media, thumbnails, previews: options.previews?.(media) });
  federationMediaRoutes(app, { media, thumbnails });
  mediaAdminRoutes(app, {
    media,
    moderation: new MediaModeration(bench.db, media),
    administratorOf(request) {
      if (request.headers['x-user'] !== ADMIN) throw forbidden('no');
      return ADMIN;
    },
  });
  return { app, media };
}

export async function upload(
  app: FastifyInstance,
  payload: Buffer | string,
  type?: string,
  filename?: string,
): Promise<string> {
  const answer = await app.inject({
    method: 'POST',
    url: '/_matrix/media/v3/upload',
    query: filename === undefined ? {} : { filename },
    headers: type === undefined ? {} : { 'content-type': type },
    payload,
  });
  if (answer.statusCode !== 200) throw new Error(answer.body);
  return (answer.json() as { content_uri: string }).content_uri.split('/').at(-1)!;
}
