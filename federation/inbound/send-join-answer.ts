import type { Rooms } from '@trellis/rooms/rooms.ts';
import { authChainNids } from '@trellis/storage/auth-chains.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** Events in one piece of the answer: what is held in memory of a room of any size. */
const PIECE = 250;

/**
 * The answer to `/send_join`: the state before the join, and the auth chains of it and of the join. It is written piece
 * by piece, events as they are in the database; what can fail for the room's sake has been done before the first piece.
 */
export async function sendJoinAnswer(
  rooms: Rooms,
  join: StoredEvent,
  version: 'v1' | 'v2',
): Promise<AsyncIterable<string>> {
  const { snapshots, db, serverName } = rooms.parts;
  const state = await snapshots.load(join.stateBefore!);
  const nids = Array.from(state.entries(), ([, { nid }]) => nid);
  const chain = await authChainNids(db, [...nids, join.nid]);
  const head = `"origin":${JSON.stringify(serverName)},"members_omitted":false,"event":${join.json}`;
  async function* write() {
    yield `${version === 'v1' ? '[200,' : ''}{${head},"state":[`;
    yield* list(rooms, nids);
    yield '],"auth_chain":[';
    yield* list(rooms, chain);
    yield version === 'v1' ? ']}]' : ']}';
  }
  return write();
}

async function* list(rooms: Rooms, nids: readonly number[]): AsyncGenerator<string> {
  for (let i = 0; i < nids.length; i += PIECE) {
    const texts = await rooms.parts.events.jsonByNids(nids.slice(i, i + PIECE));
    yield (i > 0 ? ',' : '') + texts.join(',');
  }
}
