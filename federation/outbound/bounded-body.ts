import type { Readable } from 'node:stream';

/** A peer sent more than we asked for or can hold. */
export class BodyTooLargeError extends Error {
  override readonly name = 'BodyTooLargeError';
  readonly code = 'TRELLIS_BODY_TOO_LARGE';
}

export type ResponseHeaders = Record<string, string | string[] | undefined>;

export function headerOf(headers: ResponseHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** Passes `body` on until it exceeds `maxBytes`, then destroys it. */
export async function* boundedBody(
  body: Readable,
  maxBytes: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  let seen = 0;
  try {
    for await (const chunk of body as AsyncIterable<Uint8Array>) {
      seen += chunk.byteLength;
      if (seen > maxBytes) throw new BodyTooLargeError(`the answer is larger than ${maxBytes} bytes`);
      yield chunk;
    }
  } finally {
    body.destroy();
  }
}

/** The whole body, refused by its declared length where there is one. */
export async function readBounded(
  headers: ResponseHeaders,
  body: Readable,
  maxBytes: number,
): Promise<Buffer> {
  if (Number(headerOf(headers, 'content-length') ?? 0) > maxBytes) {
    body.on('error', () => {}).destroy();
    throw new BodyTooLargeError(`the answer is larger than ${maxBytes} bytes`);
  }
  const chunks: Uint8Array[] = [];
  for await (const chunk of boundedBody(body, maxBytes)) chunks.push(chunk);
  return Buffer.concat(chunks);
}
