import type { JsonObject } from '@trellis/protocol/event.ts';
import type { CarryOver } from '@trellis/rooms/successors.ts';
import type { AccountData } from '@trellis/users/account-data.ts';
import type { PushRules } from '@trellis/users/push-rules.ts';
import type { RoomTags } from '@trellis/users/tags.ts';

export interface CarryOverDeps {
  readonly accountData: AccountData;
  readonly tags: RoomTags;
  readonly pushRules: PushRules;
}

/** What a user set for a room holds for the one that takes its place: push rules, tags, and that it is a direct chat. */
export function carryOverSettings({ accountData, tags, pushRules }: CarryOverDeps): CarryOver {
  return async (userId, oldRoom, newRoom) => {
    await pushRules.copyRoomRules(userId, oldRoom, newRoom);
    await copyTags(tags, userId, oldRoom, newRoom);
    await copyDirect(accountData, userId, oldRoom, newRoom);
  };
}

async function copyTags(tags: RoomTags, userId: string, oldRoom: string, newRoom: string): Promise<void> {
  const present = await tags.get(userId, newRoom);
  for (const [tag, data] of Object.entries(await tags.get(userId, oldRoom)))
    if (!Object.hasOwn(present, tag)) await tags.set(userId, newRoom, tag, data);
}

async function copyDirect(
  accountData: AccountData,
  userId: string,
  oldRoom: string,
  newRoom: string,
): Promise<void> {
  await accountData.update(userId, null, 'm.direct', (current) => {
    const added: JsonObject = {};
    for (const [other, roomIds] of Object.entries(current ?? {}))
      if (Array.isArray(roomIds) && roomIds.includes(oldRoom) && !roomIds.includes(newRoom))
        added[other] = [...roomIds, newRoom];
    return Object.keys(added).length > 0 ? { ...current, ...added } : undefined;
  });
}
