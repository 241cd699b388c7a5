import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { cleanFilename, contentDisposition } from './content-disposition.ts';
import { allowRemoteOf, integer, type MediaQuery, thumbnailOf, waitOf } from './media-query.ts';
import type { MediaRepository } from './repository.ts';
import { serveContent } from './serve-content.ts';
import type { ThumbnailInfo, Thumbnails } from './thumbnails.ts';
import type { UrlPreviews } from './url-previews.ts';

export interface DownloadDeps {
  readonly media: MediaRepository;
  readonly thumbnails: Thumbnails;
  /** `undefined` when previews are switched off: the endpoint is not there then. */
  readonly previews: UrlPreviews | undefined;
}

interface Name {
  serverName: string;
  mediaId: string;
  fileName?: string;
}

type MediaRequest = FastifyRequest<{ Params: Name; Querystring: MediaQuery }>;

/**
 * Downloads, thumbnails and previews for clients: by the endpoints that ask for a token and, frozen or not, by the
 * old ones that do not.
 * https://spec.matrix.org/v1.18/client-server-api/#content-repository
 */
export function downloadRoutes(app: FastifyInstance, { media, thumbnails, previews }: DownloadDeps): void {
  const families = [
    { base: '/_matrix/client/v1/media', unauthenticated: false, config: { guests: true } },
    { base: '/_matrix/media/v3', unauthenticated: true, config: { auth: 'none' } },
  ] as const;

  for (const { base, unauthenticated, config } of families) {
    const find = ({ params, query }: MediaRequest) =>
      media.find(params.serverName, params.mediaId, {
        waitMs: waitOf(query),
        // The endpoints with a token have no such parameter: only servers use it, and they have their own.
        allowRemote: unauthenticated ? allowRemoteOf(query) : true,
        unauthenticated,
      });

    for (const path of ['/download/:serverName/:mediaId', '/download/:serverName/:mediaId/:fileName'])
      app.get<{ Params: Name; Querystring: MediaQuery }>(
        base + path,
        { config },
        async (request, reply: FastifyReply) => {
          const info = await find(request);
          const filename = cleanFilename(request.params.fileName) ?? info.filename;
          return serveContent(request, reply, {
            ...info,
            disposition: contentDisposition(info.contentType, filename),
            shared: unauthenticated,
            open: (range) => media.open(info, range),
          });
        },
      );

    app.get<{ Params: Name; Querystring: MediaQuery }>(
      `${base}/thumbnail/:serverName/:mediaId`,
      { config },
      async (request, reply: FastifyReply) => {
        const wanted = thumbnailOf(request.query);
        const thumbnail = await thumbnails.get(await find(request), wanted);
        return serveContent(request, reply, {
          ...thumbnail,
          disposition: contentDisposition(thumbnail.contentType, thumbnailName(thumbnail)),
          shared: unauthenticated,
          open: (range) => media.open(thumbnail, range),
        });
      },
    );

    app.get(`${base}/config`, { config: { guests: true } }, async () => ({
      'm.upload.size': media.limits.maxUploadBytes,
    }));

    if (previews)
      app.get<{ Querystring: MediaQuery }>(`${base}/preview_url`, async ({ query }) => {
        // Only the newest preview is kept, which the spec allows to answer with.
        if (query.ts !== undefined) integer('ts', query.ts);
        return previews.get(query.url);
      });
  }
}

/** `thumbnail.png` for `image/png`. */
export function thumbnailName({ contentType }: ThumbnailInfo): string {
  return `thumbnail.${contentType.slice('image/'.length)}`;
}
