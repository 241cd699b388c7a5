import { join } from 'node:path';
import { requesterOf, requireActive } from '@trellis/client-api/authentication.ts';
import { RemoteMediaClient } from '@trellis/federation/outbound/media-calls.ts';
import { DiskStore } from '@trellis/media/disk-store.ts';
import { downloadRoutes } from '@trellis/media/download-routes.ts';
import { federationMediaRoutes } from '@trellis/media/federation-routes.ts';
import { MediaRepository } from '@trellis/media/repository.ts';
import { Thumbnails } from '@trellis/media/thumbnails.ts';
import { uploadRoutes } from '@trellis/media/upload-routes.ts';
import { UrlPreviews } from '@trellis/media/url-previews.ts';
import type { FastifyInstance } from 'fastify';
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
): Promise<MediaServices> {
  const { db, log, serverName } = core;
  const config = core.config.media;
  const media = new MediaRepository({
    serverName,
    db,
    store: await DiskStore.open(join(core.config.data_dir, 'media')),
    remote: remoteMedia(new RemoteMediaClient(transport.client, transport.fetch)),
    limits: {
      maxUploadBytes: config.max_upload_bytes,
      maxRemoteBytes: config.max_remote_bytes,
      maxRemoteCacheBytes: config.max_remote_cache_bytes,
      maxUserBytes: config.max_user_bytes,
    },
    freezeUnauthenticated: config.freeze_unauthenticated,
  });
  const thumbnails = new Thumbnails({ db, media });
  const previews = config.url_previews
    ? new UrlPreviews({
        db,
        media,
        fetch: transport.fetch,
        denyHosts: config.deny_preview_hosts,
        onFailure: (err, host) => log.debug({ err, host }, 'no preview'),
      })
    : undefined;

  const maintain = () =>
    Promise.all([media.maintain(), previews?.maintain()]).catch((err: unknown) =>
      log.error({ err }, 'media could not be tidied'),
    );
  let timer: NodeJS.Timeout | undefined;
  core.onReady(() => {
    timer = setInterval(maintain, MAINTENANCE_INTERVAL).unref();
  });
  core.onClose(() => clearInterval(timer));

  return {
    media,
    thumbnails,
    clientRoutes(app) {
      uploadRoutes(app, { media, uploaderOf: (request) => requireActive(requesterOf(request)).userId });
      downloadRoutes(app, { media, thumbnails, previews });
    },
    federationRoutes: (app) => federationMediaRoutes(app, { media, thumbnails }),
  };
}
