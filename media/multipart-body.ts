import { randomBytes } from 'node:crypto';

export interface MultipartPart {
  readonly headers: Readonly<Record<string, string>>;
  /** Opened when its turn has come. */
  open(): Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
  /** Of the body, in bytes. */
  readonly size: number;
}

export interface MultipartBody {
  readonly contentType: string;
  /** Known beforehand, so that a connection lost in the middle shows. */
  readonly size: number;
  readonly chunks: AsyncIterable<Uint8Array>;
}

/** Writes a `multipart/mixed` body (RFC 2046 5.1.3) while its parts come in. */
export function multipartBody(parts: readonly MultipartPart[]): MultipartBody {
  // Random and long enough that no part can hold it.
  const boundary = randomBytes(24).toString('hex');
  const heads = parts.map(({ headers }, index) => {
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    return Buffer.from(`${index === 0 ? '' : '\r\n'}--${boundary}\r\n${lines.join('')}\r\n`, 'latin1');
  });
  const end = Buffer.from(`\r\n--${boundary}--\r\n`, 'latin1');
  const size = parts.reduce((sum, part, index) => sum + heads[index]!.length + part.size, end.length);
  return { contentType: `multipart/mixed; boundary=${boundary}`, size, chunks: write() };

  async function* write(): AsyncGenerator<Uint8Array, void, undefined> {
    for (const [index, part] of parts.entries()) {
      yield heads[index]!;
      yield* part.open();
    }
    yield end;
  }
}
