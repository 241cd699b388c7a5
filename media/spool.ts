import { createHash, randomBytes } from 'node:crypto';
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ContentTooLargeError } from './media-store.ts';

/** Files older than this belong to a process that ended in the middle. */
const ABANDONED_AFTER = 24 * 3_600_000;

/** Content on its way into a store: how long it is and what it hashes to is known once it is here. */
export interface Spooled {
  readonly path: string;
  readonly sha256: Buffer;
  readonly size: number;
  /** Deletes the file; does nothing when it is gone. */
  remove(): Promise<void>;
}

/** A folder for content that comes in. */
export class Spool {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async open(folder: string): Promise<Spool> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const limit = Date.now() - ABANDONED_AFTER;
    for (const name of await readdir(folder)) {
      const path = join(folder, name);
      const info = await stat(path).catch(() => undefined);
      if (info && info.mtimeMs < limit) await rm(path, { force: true });
    }
    return new Spool(folder);
  }

  /**
   * Writes `source` to a file of its own. Throws `ContentTooLargeError` beyond `maxBytes`.
   *
   * @param durable whether the file must outlive a power cut
   */
  async take(
    source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    maxBytes: number,
    durable: boolean,
  ): Promise<Spooled> {
    const path = join(this.#folder, randomBytes(16).toString('hex'));
    const remove = () => rm(path, { force: true });
    const hash = createHash('sha256');
    let size = 0;
    const file = await open(path, 'wx', 0o600);
    try {
      for await (const chunk of source) {
        size += chunk.byteLength;
        if (size > maxBytes) throw new ContentTooLargeError(`the content is larger than ${maxBytes} bytes`);
        hash.update(chunk);
        await file.writeFile(chunk);
      }
      if (durable) await file.sync();
    } catch (error) {
      await file.close();
      await remove();
      throw error;
    }
    await file.close();
    return { path, sha256: hash.digest(), size, remove };
  }
}
