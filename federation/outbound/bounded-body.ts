import type { Readable } from 'node:stream';

/** A peer sent more than we asked for or can hold. */
export class BodyTooLargeError extends Error {
  override readonly name = 'BodyTooLargeError';
  readonly code = 'TRELLIS_BODY_TOO_LARGE';
}

/** A peer sends so slowly that it only holds what others need. */
export class BodyTooSlowError extends Error {
  override readonly name = 'BodyTooSlowError';
  readonly code = 'TRELLIS_BODY_TOO_SLOW';
}

/** How slowly an answer may come, once its head is here. */
export interface Pace {
  /** Nothing is said against it for so long; and for so long nothing at all may come. In milliseconds. */
  readonly graceMs: number;
  /** After that, on the average. */
  readonly bytesPerSecond: number;
}

export const PACE: Pace = { graceMs: 20_000, bytesPerSecond: 1024 };

export type ResponseHeaders = Record<string, string | string[] | undefined>;

export function headerOf(headers: ResponseHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/**
 * Passes `body` on until it exceeds `maxBytes` or drips in, then destroys it. That something comes at all is for who
 * made the request to see to (undici's `bodyTimeout`).
 */
export async function* boundedBody(
  body: Readable,
  maxBytes: number,
  pace: Pace = PACE,
): AsyncGenerator<Uint8Array, void, undefined> {
  let seen = 0;
  // What the reader takes for a chunk is no fault of the sender's.
  let waited = 0;
  let since = performance.now();
  try {
    for await (const chunk of body as AsyncIterable<Uint8Array>) {
      waited += performance.now() - since;
      seen += chunk.byteLength;
      if (seen > maxBytes) throw new BodyTooLargeError(`the answer is larger than ${maxBytes} bytes`);
      if (waited > pace.graceMs && seen < (waited / 1000) * pace.bytesPerSecond)
        throw new BodyTooSlowError(`the answer came too slowly: ${seen} bytes in ${Math.round(waited)} ms`);
      yield chunk;
      since = performance.now();
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
  pace: Pace = PACE,
): Promise<Buffer> {
  if (Number(headerOf(headers, 'content-length') ?? 0) > maxBytes) {
    body.on('error', () => {}).destroy();
    throw new BodyTooLargeError(`the answer is larger than ${maxBytes} bytes`);
  }
  const chunks: Uint8Array[] = [];
  for await (const chunk of boundedBody(body, maxBytes, pace)) chunks.push(chunk);
  return Buffer.concat(chunks);
}
