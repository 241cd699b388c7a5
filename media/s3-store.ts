import { PassThrough, type Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { contentPath } from './content-path.ts';
import type { MediaStore, StagedContent } from './media-store.ts';
import { S3Client, S3Error, type S3Options } from './s3-client.ts';
import { MAX_OBJECT_BYTES } from './s3-limits.ts';
import { Spool, type Spooled } from './spool.ts';

export interface S3StoreOptions extends S3Options {
  /** Before the paths of all objects; empty or with a slash at its end. */
  readonly prefix: string;
  /** Where content waits until it is known what it hashes to. */
  readonly spoolFolder: string;
}

/** Media in a bucket of an S3-compatible store. */
export class S3Store implements MediaStore {
  readonly #client: S3Client;
  readonly #prefix: string;
  readonly #spool: Spool;

  private constructor(client: S3Client, prefix: string, spool: Spool) {
    this.#client = client;
    this.#prefix = prefix;
    this.#spool = spool;
  }

  static async open(options: S3StoreOptions): Promise<S3Store> {
    return new S3Store(new S3Client(options), options.prefix, await Spool.open(options.spoolFolder));
  }

  /**
   * Whether the bucket is there and lets us in. Without the right to list it, S3 says 403 for what is not there, and
   * no one could tell missing from forbidden. Throws `S3Error`.
   */
  async check(): Promise<void> {
    const { statusCode, body } = await this.#client.call({
      method: 'GET',
      query: { 'list-type': '2', 'max-keys': '1', prefix: this.#prefix },
    });
    await body.dump();
    if (statusCode === 404) throw new S3Error('GET', { status: 404, code: 'NoSuchBucket' });
  }

  /**
   * The content goes to the store at once, before it has a name: `commit` runs while the database holds a lock, which
   * is no time to send it. Should the content have been deleted in between, `commit` sends it again.
   */
  async stage(
    source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    maxBytes: number,
  ): Promise<StagedContent> {
    const spooled = await this.#spool.take(source, Math.min(maxBytes, MAX_OBJECT_BYTES), false);
    const { sha256, size } = spooled;
    const send = async () => {
      if (!(await this.has(sha256))) await this.#put(spooled);
    };
    try {
      await send();
    } catch (error) {
      await spooled.remove();
      throw error;
    }
    return { sha256, size, commit: send, discard: () => spooled.remove() };
  }

  read(sha256: Buffer, range?: { start: number; end: number }): Readable {
    const out = new PassThrough();
    const abort = new AbortController();
    out.once('close', () => abort.abort());
    this.#get(sha256, range, abort.signal)
      .then((body) => pipeline(body, out))
      .catch((error: Error) => out.destroy(error));
    return out;
  }

  async has(sha256: Buffer): Promise<boolean> {
    const { statusCode, body } = await this.#client.call({ method: 'HEAD', key: this.#key(sha256) });
    await body.dump();
    return statusCode !== 404;
  }

  async delete(sha256: Buffer): Promise<void> {
    const { body } = await this.#client.call({ method: 'DELETE', key: this.#key(sha256) });
    await body.dump();
  }

  async close(): Promise<void> {
    await this.#client.close();
  }

  async #put(file: Spooled): Promise<void> {
    const { statusCode, body } = await this.#client.call({
      method: 'PUT',
      key: this.#key(file.sha256),
      file,
    });
    await body.dump();
    if (statusCode === 404) throw new S3Error('PUT', { status: 404, code: 'NoSuchBucket' });
  }

  async #get(
    sha256: Buffer,
    range: { start: number; end: number } | undefined,
    signal: AbortSignal,
  ): Promise<Readable> {
    const { statusCode, body } = await this.#client.call({
      method: 'GET',
      key: this.#key(sha256),
      headers: range && { range: `bytes=${range.start}-${range.end}` },
      signal,
    });
    if (statusCode === (range ? 206 : 200)) return body;
    body.on('error', () => {}).destroy();
    throw new S3Error('GET', { status: statusCode });
  }

  #key(sha256: Buffer): string {
    return this.#prefix + contentPath(sha256);
  }
}
