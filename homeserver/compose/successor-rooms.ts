import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { EventChange } from '@trellis/rooms/rooms.ts';
import type { AccountData } from '@trellis/users/account-data.ts';
import type { PushRules } from '@trellis/users/push-rules.ts';
import type { RoomTags } from '@trellis/users/tags.ts';
import type { Core } from './core.ts';

export interface SuccessorRoomsDeps {
  readonly accountData: AccountData;
  readonly tags: RoomTags;
  readonly pushRules: PushRules;
}

/**
 * When a local user joins a room that took the place of one of theirs (spec: "Room Upgrades"), what they set for the
 * old room holds for the new one too: push rules, tags, and that it is a direct chat.
 */
export function followSuccessorRooms(core: Core, deps: SuccessorRoomsDeps): void {
  core.rooms.parts.stream.subscribe((_pos, change) => {
    const joined = change.memberships
      .filter(({ before, after }) => before !== 'join' && after === 'join')
      .map(({ userId }) => userId)
      .filter((userId) => serverNameOf(userId) === core.serverName);
    if (joined.length === 0 || change.outOfBand) return;
    takeAlong(core, deps, change, joined).catch((err: unknown) =>
      core.log.warn({ err, roomId: change.roomId }, 'settings of the old room not taken along'),
    );
  });
}

async function takeAlong(
  { rooms, memberships }: Core,
  deps: SuccessorRoomsDeps,
  { roomId }: EventChange,
  joined: readonly string[],
): Promise<void> {
  const room = await rooms.get(roomId);
  const ref = room?.state.get('m.room.create', '');
  const create = ref && (await rooms.parts.events.get(ref.eventId));
  const oldRoom = objectAt(create?.content.predecessor).room_id;
  if (typeof oldRoom !== 'string') return;
  for (const userId of joined) {
    if (!(await memberships.of(userId)).has(oldRoom)) continue;
    await deps.pushRules.copyRoomRules(userId, oldRoom, roomId);
    await copyTags(deps.tags, userId, oldRoom, roomId);
    await copyDirect(deps.accountData, userId, oldRoom, roomId);
  }
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

function objectAt(value: JsonValue | undefined): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {};
}
