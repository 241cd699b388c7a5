import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { creatorsOf, levelOf, powerLevels } from '@trellis/protocol/power-levels.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** Levels that a room without power levels has, by their names. */
const SCALARS = {
  users_default: 0,
  events_default: 0,
  state_default: 50,
  ban: 50,
  kick: 50,
  redact: 50,
  invite: 0,
};
/** What the creator of a room gets where creators are users like others. */
const CREATOR_LEVEL = 100;

export interface UpgradedLevels {
  /** Power levels that the new room begins with: they let the user who upgrades set all of its state. */
  readonly initial: JsonObject;
  /** Power levels that it is to have in the end. */
  readonly final: JsonObject;
}

/**
 * Power levels of the old room as the new room's version has them: integers, no creators among the users where they
 * stand above all levels, and levels for creators where they no longer do (room version 12, MSC4289).
 */
export function upgradedLevels(
  old: { readonly create: StoredEvent; readonly levels: StoredEvent | undefined },
  version: RoomVersion,
  upgrader: string,
  additionalCreators: readonly string[],
): UpgradedLevels {
  const { create } = old;
  const content = old.levels?.content;
  const inForce = powerLevels(content, create, create.version);
  const final: JsonObject = {};
  for (const [name, fallback] of Object.entries(SCALARS))
    final[name] = levelOf(content?.[name], create.version) ?? fallback;
  const events = levelMap(content?.events, create.version);
  const users = levelMap(content?.users, create.version);
  for (const userId of Object.keys(users)) if (!parseUserId(userId)) delete users[userId];
  if (content?.notifications !== undefined)
    final.notifications = levelMap(content.notifications, create.version);

  if (version.privilegedCreators) {
    for (const creator of [upgrader, ...additionalCreators]) delete users[creator];
  } else if (create.version.privilegedCreators) {
    for (const creator of creatorsOf(create, create.version)) users[creator] = CREATOR_LEVEL;
  } else if (!content) {
    users[upgrader] = inForce.user(upgrader);
  }
  Object.assign(final, { events, users });
  if (version.privilegedCreators) return { initial: final, final };

  const needed = Math.max(
    CREATOR_LEVEL,
    final.state_default as number,
    final.ban as number,
    ...(Object.values(events) as number[]),
  );
  const own = (users[upgrader] as number | undefined) ?? (final.users_default as number);
  if (own >= needed) return { initial: final, final };
  return { initial: { ...final, users: { ...users, [upgrader]: needed } }, final };
}

/**
 * Power levels for the old room that stop ordinary users from sending and inviting (spec: "Room Upgrades", step 6).
 */
export function closedLevels(content: JsonObject, version: RoomVersion): JsonObject {
  const usersDefault = levelOf(content.users_default, version) ?? 0;
  const closed = Math.max(50, usersDefault + 1);
  const raised = (name: string, fallback: number) =>
    Math.max(closed, levelOf(content[name], version) ?? fallback);
  return { ...content, events_default: raised('events_default', 0), invite: raised('invite', 0) };
}

function levelMap(value: JsonValue | undefined, version: RoomVersion): JsonObject {
  const levels: JsonObject = {};
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return levels;
  for (const [key, entry] of Object.entries(value)) {
    const level = levelOf(entry, version);
    if (level !== undefined) levels[key] = level;
  }
  return levels;
}
