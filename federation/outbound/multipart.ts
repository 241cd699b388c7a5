/** An answer is not the multipart/mixed that its header says. */
export class MultipartError extends Error {
  override readonly name = 'MultipartError';
}

export interface Part {
  /** Names in lower case. */
  headers: Map<string, string>;
  body: AsyncGenerator<Uint8Array, void, undefined>;
}

const MAX_PREAMBLE = 64 * 1024;
const MAX_PART_HEADERS = 16 * 1024;
const CRLF = Buffer.from('\r\n');
const BLANK_LINE = Buffer.from('\r\n\r\n');

/** The boundary of a `multipart/mixed` content type, `undefined` when it is another type or has none. */
export function boundaryOf(contentType: string): string | undefined {
  if (!/^multipart\/mixed\s*(;|$)/i.test(contentType)) return undefined;
  const match = /;\s*boundary=(?:"([^"\\]{1,70})"|([^\s";]{1,70}))/i.exec(contentType);
  return match?.[1] ?? match?.[2];
}

/**
 * The parts of a multipart body (RFC 2046 5.1.1), one after the other and without holding any of them: each part's
 * body must be read or left before the next part is asked for.
 */
export async function* multipartParts(
  body: AsyncIterable<Uint8Array>,
  boundary: string,
): AsyncGenerator<Part, void, undefined> {
  const reader = new DelimitedReader(body);
  // The first delimiter may stand at the very beginning, without a line end before it.
  await reader.skipTo(Buffer.from(`--${boundary}`), MAX_PREAMBLE);
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  for (;;) {
    const lineEnd = (await reader.readTo(CRLF, 1024)).toString('latin1');
    if (lineEnd.startsWith('--')) return;
    if (lineEnd.trim() !== '') throw new MultipartError('the boundary is followed by other text');
    // A part without headers begins with the blank line at once.
    const block = await reader.readHeaderBlock(BLANK_LINE, MAX_PART_HEADERS);
    const content = reader.streamTo(delimiter);
    yield { headers: parseHeaders(block.toString('latin1')), body: content };
    for await (const _ of content);
  }
}

function parseHeaders(block: string): Map<string, string> {
  const headers = new Map<string, string>();
  for (const line of block.split('\r\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) headers.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  return headers;
}

/** Reads a stream of chunks up to delimiters that may lie across them. */
class DelimitedReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #buffer: Buffer = Buffer.alloc(0);
  #ended = false;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  async skipTo(delimiter: Buffer, max: number): Promise<void> {
    await this.readTo(delimiter, max);
  }

  /** What stands before the delimiter; the delimiter itself is passed over. */
  async readTo(delimiter: Buffer, max: number): Promise<Buffer> {
    for (;;) {
      const at = this.#buffer.indexOf(delimiter);
      if (at >= 0) {
        const found = this.#buffer.subarray(0, at);
        this.#buffer = this.#buffer.subarray(at + delimiter.length);
        return found;
      }
      if (this.#buffer.length > max) throw new MultipartError('a part of the answer is too long');
      if (!(await this.#more())) {
        // The close delimiter's line need not end.
        if (delimiter === CRLF) return this.#takeAll();
        throw new MultipartError('the answer ends too early');
      }
    }
  }

  async readHeaderBlock(blankLine: Buffer, max: number): Promise<Buffer> {
    while (this.#buffer.length < 2 && (await this.#more()));
    if (this.#buffer.subarray(0, 2).equals(CRLF)) {
      this.#buffer = this.#buffer.subarray(2);
      return Buffer.alloc(0);
    }
    return this.readTo(blankLine, max);
  }

  async *streamTo(delimiter: Buffer): AsyncGenerator<Buffer, void, undefined> {
    for (;;) {
      const at = this.#buffer.indexOf(delimiter);
      if (at >= 0) {
        const found = this.#buffer.subarray(0, at);
        this.#buffer = this.#buffer.subarray(at + delimiter.length);
        if (found.length > 0) yield found;
        return;
      }
      // All but what may be the beginning of the delimiter is content for certain.
      const certain = this.#buffer.length - delimiter.length + 1;
      if (certain > 0) {
        const chunk = this.#buffer.subarray(0, certain);
        this.#buffer = this.#buffer.subarray(certain);
        yield chunk;
      }
      if (!(await this.#more())) throw new MultipartError('the answer ends too early');
    }
  }

  #takeAll(): Buffer {
    const all = this.#buffer;
    this.#buffer = Buffer.alloc(0);
    return all;
  }

  async #more(): Promise<boolean> {
    if (this.#ended) return false;
    const { value, done } = await this.#source.next();
    if (done) {
      this.#ended = true;
      return false;
    }
    this.#buffer = this.#buffer.length === 0 ? Buffer.from(value) : Buffer.concat([this.#buffer, value]);
    return true;
  }
}
