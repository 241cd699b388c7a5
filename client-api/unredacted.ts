import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { levelsInForce } from '@trellis/rooms/room-rights.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyRequest } from 'fastify';
import { requesterOf } from './authentication.ts';

/**
 * What a redaction took away, where a moderator asks for it and the server still has it (MSC2815); `undefined` where
 * the event is to be answered as it is.
 *
 * @throws M_FORBIDDEN, and the MSC's error when the content is gone
 */
export async function unredactedContent(
  request: FastifyRequest,
  rooms: Rooms,
  { room, event }: { room: Room; event: StoredEvent },
): Promise<JsonObject | undefined> {
  const { redactedOriginals } = rooms.parts;
  const query = request.query as Record<string, unknown>;
  if (!redactedOriginals || query['fi.mau.msc2815.include_unredacted_content'] !== 'true') return undefined;
  const { userId, isAdmin } = requesterOf(request);
  const levels = await levelsInForce(rooms, room);
  const isModerator = room.isJoined(userId) && levels && levels.user(userId) >= levels.toRedact;
  if (!isModerator && !isAdmin) throw forbidden('You may not see what was redacted in this room');
  if (!event.redactedBy) return undefined;
  const content = await redactedOriginals.content(event.eventId);
  if (content) return content;
  throw new MatrixError(
    404,
    'FI.MAU.MSC2815_UNREDACTED_CONTENT_DELETED',
    'What was redacted is no longer kept',
    { 'fi.mau.msc2815.content_keep_ms': redactedOriginals.keepMs },
  );
}

/** An event, given as JSON text, with another content. */
export function withContent(json: string, content: JsonObject): string {
  return JSON.stringify({ ...(decodeJson(json) as JsonObject), content });
}
