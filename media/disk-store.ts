import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { ContentTooLargeError, type MediaStore, type StagedContent } from './media-store.ts';

/** Staged files older than this belong to a process that ended in the middle. */
const ABANDONED_AFTER = 24 * 3_600_000;

/**
 * Media in a folder: `ab/cd/<hash>`. Paths are made of hashes alone, so nothing that a user or a server chooses ever
 * becomes part of one.
 */
export class DiskStore implements MediaStore {
  readonly #root: string;
  readonly #staging: string;

  private constructor(root: string) {
    this.#root = root;
    this.#staging = join(root, 'staging');
  }

  static async open(root: string): Promise<DiskStore> {
    const store = new DiskStore(root);
    await mkdir(store.#staging, { recursive: true, mode: 0o700 });
    await store.#removeAbandoned();
    return store;
  }

  async stage(
    source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    maxBytes: number,
  ): Promise<StagedContent> {
    const path = join(this.#staging, randomBytes(16).toString('hex'));
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
      await file.sync();
    } catch (error) {
      await file.close();
      await rm(path, { force: true });
      throw error;
    }
    await file.close();
    const sha256 = hash.digest();
    return {
      sha256,
      size,
      commit: () => this.#commit(path, sha256),
      discard: () => rm(path, { force: true }),
    };
  }

  read(sha256: Buffer, range?: { start: number; end: number }): Readable {
    return createReadStream(this.#path(sha256), range);
  }

  async has(sha256: Buffer): Promise<boolean> {
    return access(this.#path(sha256)).then(
      () => true,
      () => false,
    );
  }

  async delete(sha256: Buffer): Promise<void> {
    await rm(this.#path(sha256), { force: true });
  }

  async #commit(staged: string, sha256: Buffer): Promise<void> {
    const path = this.#path(sha256);
    if (await this.has(sha256)) {
      await rm(staged, { force: true });
      return;
    }
    const folder = dirname(path);
    const made = await mkdir(folder, { recursive: true, mode: 0o700 });
    await rename(staged, path);
    // The name must survive a power cut as the content does, and so must the folders that are new.
    await syncFolder(folder);
    if (made !== undefined) for (const above of [dirname(folder), this.#root]) await syncFolder(above);
  }

  #path(sha256: Buffer): string {
    if (sha256.length !== 32) throw new Error('a content hash has 32 bytes');
    const hex = sha256.toString('hex');
    return join(this.#root, hex.slice(0, 2), hex.slice(2, 4), hex.slice(4));
  }

  async #removeAbandoned(): Promise<void> {
    const limit = Date.now() - ABANDONED_AFTER;
    for (const name of await readdir(this.#staging)) {
      const path = join(this.#staging, name);
      const info = await stat(path).catch(() => undefined);
      if (info && info.mtimeMs < limit) await rm(path, { force: true });
    }
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } catch {
    // Not every file system syncs folders.
  } finally {
    await folder.close();
  }
}
