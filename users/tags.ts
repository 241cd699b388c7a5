import { Buffer } from 'node:buffer';
import { invalidParam, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { type AccountData, TAGS } from './account-data.ts';

export type Tags = Readonly<Record<string, JsonObject>>;

const MAX_TAG_BYTES = 255;
const MAX_TAGS = 100;

/** Tags of rooms (spec: "Room Tagging"): account data of the room, of type `m.tag`. */
export class RoomTags {
  readonly #accountData: AccountData;

  constructor(accountData: AccountData) {
    this.#accountData = accountData;
  }

  async get(userId: string, roomId: string): Promise<Tags> {
    return tagsIn(await this.#accountData.get(userId, roomId, TAGS));
  }

  /** @throws M_INVALID_PARAM, M_TOO_LARGE */
  async set(userId: string, roomId: string, tag: string, data: JsonObject): Promise<void> {
    checkTag(tag);
    const { order } = data;
    if (order !== undefined && !(typeof order === 'number' && order >= 0 && order <= 1))
      throw invalidParam('order must be a number from 0 to 1');
    await this.#accountData.update(userId, roomId, TAGS, (current) => {
      const tags = tagsIn(current);
      if (!Object.hasOwn(tags, tag) && Object.keys(tags).length >= MAX_TAGS)
        throw tooLarge(`A room can have no more than ${MAX_TAGS} tags`);
      return { ...current, tags: { ...tags, [tag]: data } };
    });
  }

  async delete(userId: string, roomId: string, tag: string): Promise<void> {
    await this.#accountData.update(userId, roomId, TAGS, (current) => {
      const tags = tagsIn(current);
      if (!Object.hasOwn(tags, tag)) return undefined;
      const { [tag]: _, ...others } = tags;
      return { ...current, tags: others };
    });
  }
}

function tagsIn(content: JsonObject | undefined): Tags {
  const tags = content?.tags;
  return typeof tags === 'object' && tags !== null && !Array.isArray(tags) ? (tags as Tags) : {};
}

function checkTag(tag: string): void {
  if (Buffer.byteLength(tag) > MAX_TAG_BYTES || !tag.isWellFormed())
    throw invalidParam(`Tags have at most ${MAX_TAG_BYTES} bytes`);
}
