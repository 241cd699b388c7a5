import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BodyTooLargeError } from '@trellis/federation/outbound/bounded-body.ts';
import { FederationError } from '@trellis/federation/outbound/federation-error.ts';
import type { RemoteMediaAnswer } from '@trellis/federation/outbound/media-calls.ts';
import { boundaryOf, multipartParts } from '@trellis/federation/outbound/multipart.ts';
import { multipartBody } from '@trellis/media/multipart-body.ts';
import fc from 'fast-check';
import { remoteMedia } from '../compose/remote-media.ts';

const REQUEST = { serverName: 'there.example', mediaId: 'abc', maxBytes: 1000, timeoutMs: 1000 };

/** Media of a server that answers as said, read as the repository does. */
function fetching(answer: () => AsyncIterable<Uint8Array>, read = readAll) {
  return remoteMedia({
    get: async (_request, take) =>
      take({ contentType: undefined, contentDisposition: undefined, body: answer() }),
  }).get(REQUEST, read);
}

async function readAll({
  body,
}: {
  body: RemoteMediaAnswer['body'] | Iterable<Uint8Array>;
}): Promise<number> {
  let size = 0;
  for await (const chunk of body) size += chunk.byteLength;
  return size;
}

async function* breaking(error: Error): AsyncGenerator<Uint8Array, void, undefined> {
  yield Buffer.from('begun');
  throw error;
}

describe('media of another server', () => {
  it('comes with errors that a client can be told', async () => {
    const answered = (status: number, errcode: string) =>
      new FederationError('there.example', 'http', 'answered', { status, body: { errcode } });
    const cases: Array<[Error, number, string]> = [
      [answered(404, 'M_NOT_FOUND'), 404, 'M_NOT_FOUND'],
      [answered(404, 'M_UNRECOGNIZED'), 404, 'M_NOT_FOUND'],
      [answered(504, 'M_NOT_YET_UPLOADED'), 504, 'M_NOT_YET_UPLOADED'],
      [answered(413, 'M_TOO_LARGE'), 502, 'M_TOO_LARGE'],
      [answered(401, 'M_UNAUTHORIZED'), 502, 'M_UNKNOWN'],
      [new BodyTooLargeError('too large'), 502, 'M_TOO_LARGE'],
      [new Error('multipart without end'), 502, 'M_UNKNOWN'],
    ];
    for (const [error, status, errcode] of cases) {
      const failing = remoteMedia({ get: () => Promise.reject(error) });
      await assert.rejects(failing.get(REQUEST, readAll), { status, errcode }, error.message);
      await assert.rejects(
        fetching(() => breaking(error)),
        { status, errcode },
        error.message,
      );
    }
  });

  it('is not blamed for what goes wrong here', async () => {
    const full = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
    const body = async function* () {
      yield Buffer.from('whole');
    };
    await assert.rejects(
      fetching(body, () => Promise.reject(full)),
      full,
    );
    assert.equal(await fetching(body), 5);
  });

  it('is read as it is written, however it is cut on the way', async () => {
    // Line ends and hyphens are what delimiters are made of.
    const content = fc
      .uint8Array({ maxLength: 300 })
      .map((bytes) => bytes.map((byte) => '\r\n-ab'.charCodeAt(byte % 5)));
    await fc.assert(
      fc.asyncProperty(content, fc.integer({ min: 1, max: 50 }), async (bytes, step) => {
        const written = multipartBody([
          { headers: { 'Content-Type': 'application/json' }, open: () => [Buffer.from('{}')], size: 2 },
          {
            headers: { 'Content-Type': 'text/plain', 'X-Name': 'é' },
            open: () => [bytes],
            size: bytes.length,
          },
        ]);
        const whole = Buffer.concat(await Array.fromAsync(written.chunks));
        assert.equal(whole.length, written.size);
        const cut = async function* () {
          for (let at = 0; at < whole.length; at += step) yield whole.subarray(at, at + step);
        };
        const parts: Array<{ type: string | undefined; bytes: Buffer }> = [];
        for await (const part of multipartParts(cut(), boundaryOf(written.contentType)!)) {
          const chunks = await Array.fromAsync(part.body, (chunk) => Buffer.from(chunk));
          parts.push({ type: part.headers.get('content-type'), bytes: Buffer.concat(chunks) });
        }
        assert.deepEqual(
          parts.map(({ type }) => type),
          ['application/json', 'text/plain'],
        );
        assert.ok(parts[1]!.bytes.equals(bytes));
      }),
      { numRuns: 200 },
    );
  });
});
