import { Readable } from 'node:stream';
import { MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { MediaQuery } from './media-query.ts';
import type { MediaRepository, Upload } from './repository.ts';

export interface UploadDeps {
  readonly media: MediaRepository;
  /** The user that an authenticated request comes from, when that user may upload. */
  uploaderOf(request: FastifyRequest): string;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** What the client says that its upload is. */
    uploadedType: string | undefined;
  }
}

/** Uploads, at once or to a name reserved before (spec: "Content repository"). */
export function uploadRoutes(app: FastifyInstance, { media, uploaderOf }: UploadDeps): void {
  const uriOf = (mediaId: string) => `mxc://${media.serverName}/${mediaId}`;

  app.post('/_matrix/media/v1/create', async (request) => {
    const { mediaId, expiresTs } = await media.reserve(uploaderOf(request));
    return { content_uri: uriOf(mediaId), unused_expires_at: expiresTs };
  });

  app.register(async (scope) => {
    acceptAnyBody(scope);

    scope.post<{ Querystring: MediaQuery }>('/_matrix/media/v3/upload', async (request) => ({
      content_uri: uriOf(await media.upload(uploadOf(request))),
    }));

    scope.put<{ Params: { serverName: string; mediaId: string }; Querystring: MediaQuery }>(
      '/_matrix/media/v3/upload/:serverName/:mediaId',
      async (request) => {
        const { serverName, mediaId } = request.params;
        await media.uploadTo(serverName, mediaId, uploadOf(request));
        return {};
      },
    );
  });

  function uploadOf(request: FastifyRequest<{ Querystring: MediaQuery }>): Upload {
    const userId = uploaderOf(request);
    // What says that it is too large need not be read to the end to find out.
    if (Number(request.headers['content-length'] ?? 0) > media.limits.maxUploadBytes)
      throw tooLarge(`The content is larger than ${media.limits.maxUploadBytes} bytes`);
    const { filename } = request.query;
    return {
      userId,
      body: chunksOf(request.body as Readable | undefined),
      contentType: request.uploadedType,
      filename: typeof filename === 'string' ? filename : undefined,
    };
  }
}

/** Hands bodies to the handlers as streams, whatever their type, which may be no type at all. */
function acceptAnyBody(scope: FastifyInstance): void {
  scope.decorateRequest('uploadedType', undefined);
  scope.removeAllContentTypeParsers();
  scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload));
  scope.addHook('onRequest', async (request) => {
    request.uploadedType = request.headers['content-type'];
    request.headers['content-type'] = 'application/octet-stream';
  });
}

/** Leaving off in the middle must not destroy the connection: the client is told why. */
async function* chunksOf(body: Readable | undefined): AsyncGenerator<Uint8Array, void, undefined> {
  if (!(body instanceof Readable)) return;
  try {
    yield* body.iterator({ destroyOnReturn: false });
  } catch (cause) {
    if ((cause as { code?: string }).code === 'ECONNRESET')
      throw new MatrixError(400, 'M_UNKNOWN', 'The upload broke off');
    throw cause;
  }
}
