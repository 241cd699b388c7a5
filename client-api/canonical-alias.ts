import { badJson, invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isRoomAlias } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { sendEvent } from '@trellis/rooms/send.ts';

/** Alternative aliases that one event may name. */
const MAX_ALT_ALIASES = 100;

/**
 * Aliases that `m.room.canonical_alias` newly names must lead to the room (spec: `PUT …/state`, M_BAD_ALIAS,
 * M_INVALID_PARAM).
 */
export async function checkCanonicalAlias(
  rooms: Rooms,
  aliases: Aliases,
  room: Room,
  content: JsonObject,
): Promise<void> {
  const ref = room.state.get('m.room.canonical_alias', '');
  const current = ref && (await rooms.parts.events.get(ref.eventId));
  const known = new Set(aliasesIn(current?.content ?? {}, false));
  for (const alias of aliasesIn(content, true)) {
    if (known.has(alias)) continue;
    if (!isRoomAlias(alias)) throw invalidParam(`${alias} is not a room alias`);
    const target = await aliases.resolve(alias).catch((error: unknown) => {
      if (error instanceof MatrixError) return undefined;
      throw error;
    });
    if (target?.roomId !== room.roomId)
      throw new MatrixError(400, 'M_BAD_ALIAS', `${alias} does not lead to this room`);
  }
}

function aliasesIn({ alias, alt_aliases: alternatives }: JsonObject, strict: boolean): string[] {
  const named: string[] = [];
  if (typeof alias === 'string') named.push(alias);
  else if (strict && alias !== undefined && alias !== null) throw badJson('alias is not a string');
  if (Array.isArray(alternatives)) {
    if (
      strict &&
      (alternatives.length > MAX_ALT_ALIASES || !alternatives.every((entry) => typeof entry === 'string'))
    )
      throw badJson('alt_aliases is not a list of aliases');
    named.push(...alternatives.filter((entry) => typeof entry === 'string'));
  } else if (strict && alternatives !== undefined) throw badJson('alt_aliases is not a list');
  return named;
}

/**
 * Takes an alias that is gone out of the room's `m.room.canonical_alias`, if the user may change that (spec:
 * `DELETE /directory/room/{roomAlias}`).
 */
export async function removeFromCanonicalAlias(
  rooms: Rooms,
  room: Room,
  userId: string,
  alias: string,
): Promise<void> {
  const ref = room.state.get('m.room.canonical_alias', '');
  const current = ref && (await rooms.parts.events.get(ref.eventId));
  if (!current || !aliasesIn(current.content, false).includes(alias)) return;
  const content: JsonObject = { ...current.content };
  if (content.alias === alias) delete content.alias;
  if (Array.isArray(content.alt_aliases)) {
    content.alt_aliases = content.alt_aliases.filter((entry) => entry !== alias);
    if (content.alt_aliases.length === 0) delete content.alt_aliases;
  }
  try {
    await sendEvent(rooms, room.roomId, {
      type: 'm.room.canonical_alias',
      sender: userId,
      stateKey: '',
      content,
    });
  } catch (error) {
    if (!(error instanceof MatrixError)) throw error;
  }
}
