import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Room } from './room.ts';

/** Servers in the room, those that have been in it the longest first: they know the most of its past. */
export function serversByStay(room: Room): string[] {
  const since = new Map<string, number>();
  for (const [userId, { membership, pos }] of room.members()) {
    if (membership !== 'join') continue;
    const server = serverNameOf(userId);
    since.set(server, Math.min(pos, since.get(server) ?? pos));
  }
  return [...since].sort(([, a], [, b]) => a - b).map(([server]) => server);
}
