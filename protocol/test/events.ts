import type { EventProto } from '../make-event.ts';
import { buildEvent } from '../make-event.ts';
import { type RoomVersion, roomVersion } from '../room-versions.ts';
import { SigningKey } from '../signing.ts';

export const SERVER = 'example.org';
export const key = SigningKey.fromSeed('ed25519:1', 'YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1');

export function version(id: string): RoomVersion {
  const found = roomVersion(id);
  if (!found) throw new Error(`no room version ${id}`);
  return found;
}

/** A message as a server of that room version would have it, with changes. */
export function message(room: RoomVersion, changes: Partial<EventProto> = {}): EventProto {
  const hash = 'Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ';
  const ids =
    room.eventIds === 'server'
      ? ['$one:example.org', '$two:example.org']
      : [`$${hash}`, `$x${hash.slice(1)}`];
  return {
    room_id: room.roomIdIsCreateHash ? `!${hash}` : '!room:example.org',
    sender: '@alice:example.org',
    type: 'm.room.message',
    content: { msgtype: 'm.text', body: 'Hello, world' },
    prev_events: ids.slice(0, 1),
    auth_events: ids,
    depth: 12,
    origin_server_ts: 1_700_000_000_000,
    ...changes,
  };
}

export function build(room: RoomVersion, changes: Partial<EventProto> = {}) {
  return buildEvent(message(room, changes), { version: room, key, serverName: SERVER });
}
