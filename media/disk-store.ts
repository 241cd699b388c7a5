import { createReadStream } from 'node:fs';
import { access, mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { contentPath } from './content-path.ts';
import type { MediaStore, StagedContent } from './media-store.ts';
import { Spool, type Spooled } from './spool.ts';

/** Media in a folder. */
export class DiskStore implements MediaStore {
  readonly #root: string;
  readonly #spool: Spool;

  private constructor(root: string, spool: Spool) {
    this.#root = root;
    this.#spool = spool;
  }

  static async open(root: string): Promise<DiskStore> {
    return new DiskStore(root, await Spool.open(join(root, 'staging')));
  }

  async stage(
    source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    maxBytes: number,
  ): Promise<StagedContent> {
    const spooled = await this.#spool.take(source, maxBytes, true);
    const { sha256, size } = spooled;
    return { sha256, size, commit: () => this.#commit(spooled), discard: () => spooled.remove() };
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

  async #commit({ path: staged, sha256, remove }: Spooled): Promise<void> {
    const path = this.#path(sha256);
    if (await this.has(sha256)) return remove();
    const folder = dirname(path);
    const made = await mkdir(folder, { recursive: true, mode: 0o700 });
    await rename(staged, path);
    // The name must survive a power cut as the content does, and so must the folders that are new.
    await syncFolder(folder);
    if (made !== undefined) for (const above of [dirname(folder), this.#root]) await syncFolder(above);
  }

  #path(sha256: Buffer): string {
    return join(this.#root, contentPath(sha256));
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
