import { join } from 'node:path';
import { requesterOf, requireActive } from '@trellis/client-api/authentication.ts';
import type { Jobs } from '@trellis/cluster/jobs.ts';
import { RemoteMediaClient } from '@trellis/federation/outbound/media-calls.ts';
import { mediaAdminRoutes } from '@trellis/media/admin-routes.ts';
import { DiskStore } from '@trellis/media/disk-store.ts';
import { downloadRoutes } from '@trellis/media/download-routes.ts';
import { federationMediaRoutes } from '@trellis/media/federation-routes.ts';
import type { MediaStore } from '@trellis/media/media-store.ts';
import { MediaModeration } from '@trellis/media/moderation.ts';
import { MediaRepository } from '@trellis/media/repository.ts';
import type { S3Error } from '@trellis/media/s3-client.ts';
import { S3Store } from '@trellis/media/s3-store.ts';
import { Thumbnails } from '@trellis/media/thumbnails.ts';
import { uploadRoutes } from '@trellis/media/upload-routes.ts';
import { UrlPreviews } from '@trellis/media/url-previews.ts';
import { forbidden } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ConfigError } from '../config/load.ts';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';
import { remoteMedia } from './remote-media.ts';

export interface MediaServices {
  readonly media: MediaRepository;
  readonly thumbnails: Thumbnails;
  /** For a scope whose requests are authenticated as clients'. */
  clientRoutes(app: FastifyInstance): void;
  /** For a scope whose requests are authenticated as servers'. */
  federationRoutes(app: FastifyInstance): void;
}

const MAINTENANCE_INTERVAL = 3_600_000;

export async function composeMedia(
  core: Core,
  transport: Pick<FederationTransport, 'client' | 'fetch'>,
  jobs?: Jobs | undefined,
): Promise<MediaServices> {
  const { db, cluster, log, serverName } = core;
  const config = core.config.media;
  const media = new MediaRepository({
    serverName,
    db,
    store: await openStore(core),
    remote: remoteMedia(new RemoteMediaClient(transport.client, transport.fetch)),
    limits: {
      maxUploadBytes: config.max_upload_bytes,
      maxRemoteBytes: config.max_remote_bytes,
      maxRemoteCacheBytes: config.max_remote_cache_bytes,
      maxUserBytes: config.max_user_bytes,
      localLifetimeMs: config.local_lifetime_ms,
      remoteLifetimeMs: config.remote_lifetime_ms,
    },
    freezeUnauthenticated: config.freeze_unauthenticated,
    cluster,
  });
  const thumbnails = new Thumbnails({ db, media, jobs });
  const previews = config.url_previews
    ? new UrlPreviews({
        db,
        media,
        fetch: transport.fetch,
        denyHosts: config.deny_preview_hosts,
        language: config.preview_language,
        onFailure: (err, host) => log.debug({ err, host }, 'no preview'),
      })
    : undefined;

  let maintaining = false;
  const maintain = async () => {
    if (maintaining || !cluster.owns('task', 'media')) return;
    maintaining = true;
    await Promise.all([media.maintain(), previews?.maintain()]).catch((err: unknown) =>
      log.error({ err }, 'media could not be tidied'),
    );
    maintaining = false;
  };
  let timer: NodeJS.Timeout | undefined;
  core.onReady(() => {
    timer = setInterval(maintain, MAINTENANCE_INTERVAL).unref();
  });
  core.onClose(async () => {
    clearInterval(timer);
    await media.store.close?.();
  });

  return {
    media,
    thumbnails,
    clientRoutes(app) {
      uploadRoutes(app, { media, uploaderOf: (request) => requireActive(requesterOf(request)).userId });
      downloadRoutes(app, { media, thumbnails, previews });
      mediaAdminRoutes(app, { media, moderation: new MediaModeration(db, media), administratorOf });
    },
    federationRoutes: (app) => federationMediaRoutes(app, { media, thumbnails }),
  };
}

function administratorOf(request: FastifyRequest): string {
  const { isAdmin, userId } = requesterOf(request);
  if (!isAdmin) throw forbidden('You are not an administrator');
  return userId;
}

async function openStore({ config, log }: Core): Promise<MediaStore> {
  const folder = join(config.data_dir, 'media');
  const { s3 } = config.media;
  if (!s3) return DiskStore.open(folder);
  const store = await S3Store.open({
    endpoint: s3.endpoint,
    region: s3.region,
    bucket: s3.bucket,
    accessKey: s3.access_key,
    secretKey: s3.secret_key,
    prefix: s3.prefix ?? '',
    pathStyle: s3.path_style,
    spoolFolder: join(folder, 'staging'),
  });
  await store.check().catch(async (error: unknown) => {
    const { status, code } = error as S3Error;
    if (status !== undefined && status < 500) {
      await store.close();
      throw new ConfigError(
        `media.s3: ${s3.endpoint} does not let us use the bucket ${s3.bucket}: ${code ?? status}`,
      );
    }
    // A store that is down now may be there when it is needed; all else works without it.
    log.error({ err: error }, 'the S3 store for media does not answer');
  });
  return store;
}
