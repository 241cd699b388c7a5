import type { Database } from '@trellis/storage/database.ts';
import type { MediaName } from './media-table.ts';
import {
  findRecord,
  type MediaRecord,
  type Page,
  quarantine,
  quarantineUnseen,
  setProtected,
  unquarantine,
  uploadCount,
  uploadsOf,
} from './moderation-table.ts';
import { isMediaId, type MediaRepository } from './repository.ts';
import { mediaInRoom } from './room-media.ts';

const AT_A_TIME = 500;
const MAX_LISTED = 100_000;

/**
 * Decisions of administrators over media. What is quarantined is served to nobody, nor is anything else of the same
 * content, now and later; it stays stored. What is protected is never quarantined.
 */
export class MediaModeration {
  readonly #db: Database;
  readonly #media: MediaRepository;

  constructor(db: Database, media: MediaRepository) {
    this.#db = db;
    this.#media = media;
  }

  /** @returns how much was quarantined now */
  async quarantine(names: readonly MediaName[], by: string): Promise<number> {
    return this.#db.transaction(async (tx) => {
      const known = await quarantine(tx, names, by);
      return known + (await quarantineUnseen(tx, this.#media.serverName, names, by, Date.now()));
    });
  }

  async quarantineRoom(roomId: string, by: string): Promise<number> {
    let count = 0;
    for await (const names of mediaInRoom(this.#db, roomId)) count += await this.quarantine(names, by);
    return count;
  }

  async quarantineUser(userId: string, by: string): Promise<number> {
    let count = 0;
    for (let from = 0; ; from += AT_A_TIME) {
      const page = { from, limit: AT_A_TIME, orderBy: 'media_id', backwards: false } as const;
      const uploads = await uploadsOf(this.#db, userId, page);
      if (uploads.length === 0) return count;
      count += await this.quarantine(uploads, by);
    }
  }

  async unquarantine(name: MediaName): Promise<void> {
    await this.#db.transaction((tx) => unquarantine(tx, this.#media.serverName, name));
  }

  /** @returns `false` when this server has no such media of its own */
  async protect(mediaId: string, value: boolean): Promise<boolean> {
    return setProtected(this.#db, { origin: this.#media.serverName, mediaId }, value);
  }

  async find(name: MediaName): Promise<MediaRecord | undefined> {
    return isMediaId(name.mediaId) ? findRecord(this.#db, name) : undefined;
  }

  async inRoom(roomId: string): Promise<MediaName[]> {
    const found: MediaName[] = [];
    for await (const names of mediaInRoom(this.#db, roomId)) {
      found.push(...names);
      if (found.length >= MAX_LISTED) break;
    }
    return found.slice(0, MAX_LISTED);
  }

  async uploadsOf(userId: string, page: Page): Promise<{ uploads: MediaRecord[]; total: number }> {
    return {
      uploads: await uploadsOf(this.#db, userId, page),
      total: await uploadCount(this.#db, userId),
    };
  }

  async delete(names: readonly MediaName[]): Promise<void> {
    for (const { origin, mediaId } of names) await this.#media.remove(origin, mediaId);
  }
}
