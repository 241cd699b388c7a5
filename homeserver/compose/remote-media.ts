import { BodyTooLargeError } from '@trellis/federation/outbound/bounded-body.ts';
import { FederationError } from '@trellis/federation/outbound/federation-error.ts';
import type { RemoteMediaClient } from '@trellis/federation/outbound/media-calls.ts';
import type { RemoteMedia } from '@trellis/media/repository.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';

/** Other servers' media; what goes wrong there comes as an error that a client can be told. */
export function remoteMedia(client: Pick<RemoteMediaClient, 'get'>): RemoteMedia {
  return {
    async get(request, read) {
      let ours: unknown;
      try {
        return await client.get(request, async (answer) => {
          try {
            return await read({ ...answer, body: marked(answer.body) });
          } catch (error) {
            if (error instanceof BrokenBody) throw error.cause;
            ours = error;
            throw error;
          }
        });
      } catch (error) {
        throw error === ours ? error : asMatrixError(error, request.serverName);
      }
    },
  };
}

/** The other side's answer broke off: not this server's disk or database. */
class BrokenBody extends Error {
  override readonly name = 'BrokenBody';
}

async function* marked(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    yield* body;
  } catch (cause) {
    throw new BrokenBody('the answer broke off', { cause });
  }
}

function asMatrixError(error: unknown, serverName: string): MatrixError {
  const isTooLarge = (one: unknown) => one instanceof BodyTooLargeError;
  const { errcode, status, cause } = error instanceof FederationError ? error : {};
  if (isTooLarge(error) || isTooLarge(cause) || errcode === 'M_TOO_LARGE')
    return new MatrixError(502, 'M_TOO_LARGE', 'The remote content is too large');
  if (errcode === 'M_NOT_YET_UPLOADED')
    return new MatrixError(504, 'M_NOT_YET_UPLOADED', 'The media has not been uploaded yet');
  if (status === 404) return new MatrixError(404, 'M_NOT_FOUND', 'Not found');
  if (error instanceof FederationError) return error.toMatrixError();
  return new MatrixError(502, 'M_UNKNOWN', `Could not get the media from ${serverName}`);
}
