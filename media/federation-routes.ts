import { Readable } from 'node:stream';
import type { FastifyInstance, FastifyReply } from 'fastify';
import { contentDisposition } from './content-disposition.ts';
import { thumbnailName } from './download-routes.ts';
import { type MediaQuery, thumbnailOf, waitOf } from './media-query.ts';
import { multipartBody } from './multipart-body.ts';
import type { MediaRepository } from './repository.ts';
import type { Thumbnails } from './thumbnails.ts';

export interface FederationMediaDeps {
  readonly media: MediaRepository;
  readonly thumbnails: Thumbnails;
}

const METADATA = Buffer.from('{}');

/**
 * This server's media for other servers; `app` asks them for their signature.
 * https://spec.matrix.org/v1.18/server-server-api/#content-repository
 */
export function federationMediaRoutes(
  app: FastifyInstance,
  { media, thumbnails }: FederationMediaDeps,
): void {
  app.get<{ Params: { mediaId: string }; Querystring: MediaQuery }>(
    '/_matrix/federation/v1/media/download/:mediaId',
    async ({ params, query }, reply: FastifyReply) => {
      const info = await findOwn(params.mediaId, query);
      return send(reply, info, contentDisposition(info.contentType, info.filename));
    },
  );

  app.get<{ Params: { mediaId: string }; Querystring: MediaQuery }>(
    '/_matrix/federation/v1/media/thumbnail/:mediaId',
    async ({ params, query }, reply: FastifyReply) => {
      const wanted = thumbnailOf(query);
      const thumbnail = await thumbnails.get(await findOwn(params.mediaId, query), wanted);
      return send(reply, thumbnail, contentDisposition(thumbnail.contentType, thumbnailName(thumbnail)));
    },
  );

  function findOwn(mediaId: string, query: MediaQuery) {
    return media.find(media.serverName, mediaId, { waitMs: waitOf(query), allowRemote: false });
  }

  async function send(
    reply: FastifyReply,
    content: { sha256: Buffer; size: number; contentType: string },
    disposition: string,
  ): Promise<FastifyReply> {
    const body = await media.open(content);
    const { contentType, size, chunks } = multipartBody([
      { headers: { 'Content-Type': 'application/json' }, open: () => [METADATA], size: METADATA.length },
      {
        headers: { 'Content-Type': content.contentType, 'Content-Disposition': disposition },
        open: () => body,
        size: content.size,
      },
    ]);
    const parts = Readable.from(chunks, { objectMode: false });
    // Who leaves before the second part comes leaves it open.
    parts.once('close', () => body.destroy());
    return reply.header('content-type', contentType).header('content-length', size).send(parts);
  }
}
