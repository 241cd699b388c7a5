import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { authChainNids } from '@trellis/storage/auth-chains.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** Events in one piece of the answer: what is held in memory of a room of any size. */
const PIECE = 250;
const MAX_HEROES = 5;

export interface SendJoinOptions {
  readonly version: 'v1' | 'v2';
  /** In the room before the join. */
  readonly servers: readonly string[];
  /** The other server can do with a state without the members. */
  readonly omitMembers: boolean;
}

/**
 * The answer to `/send_join`: the state before the join, and the auth chains of it and of the join. It is written piece
 * by piece, events as they are in the database; what can fail for the room's sake has been done before the first piece.
 */
export async function sendJoinAnswer(
  rooms: Rooms,
  join: StoredEvent,
  { version, servers, omitMembers }: SendJoinOptions,
): Promise<AsyncIterable<string>> {
  const { snapshots, db, serverName } = rooms.parts;
  const whole = await snapshots.load(join.stateBefore!);
  const reduced = omitMembers ? withoutMembers(whole, await rooms.get(join.roomId), join) : undefined;
  const nids = reduced ?? Array.from(whole.entries(), ([, { nid }]) => nid);
  const chain = await authChainNids(db, [...nids, join.nid]);
  const given = new Set(reduced);
  const rest = reduced ? chain.filter((nid) => !given.has(nid)) : chain;
  const omitted = `"members_omitted":${reduced !== undefined}`;
  const inRoom = reduced ? `,"servers_in_room":${JSON.stringify(servers)}` : '';
  const head = `"origin":${JSON.stringify(serverName)},${omitted}${inRoom},"event":${join.json}`;
  async function* write() {
    yield `${version === 'v1' ? '[200,' : ''}{${head},"state":[`;
    yield* list(rooms, nids);
    yield '],"auth_chain":[';
    yield* list(rooms, rest);
    yield version === 'v1' ? ']}]' : ']}';
  }
  return write();
}

/**
 * The state but for the members; those by whom a room without a name is called stay, and so does what was known of the
 * one who joins. Also in small rooms: Synapse, given all members at once, leaves events out of pages of the history
 * that it fetches later, which it does not when it has asked for the state at the join first.
 */
function withoutMembers(state: Snapshot, room: Room | undefined, join: StoredEvent): number[] {
  const nids: number[] = [];
  for (const [key, { nid }] of state.entries()) if (splitStateKey(key)[0] !== 'm.room.member') nids.push(nid);
  const own = state.get('m.room.member', join.stateKey!);
  if (own) nids.push(own.nid);
  const isNamed =
    state.getKey(stateKeyOf('m.room.name', '')) ?? state.getKey(stateKeyOf('m.room.canonical_alias', ''));
  if (isNamed) return nids;
  return [...nids, ...heroes(state, room, join.stateKey!)];
}

/** Members by whom a room without a name is called (spec: `m.heroes` of the room summary). */
function heroes(state: Snapshot, room: Room | undefined, joining: string): number[] {
  const nids: number[] = [];
  for (const [userId, { membership }] of room?.members() ?? []) {
    if (nids.length === MAX_HEROES) break;
    const ref = state.get('m.room.member', userId);
    if (ref && userId !== joining && (membership === 'join' || membership === 'invite')) nids.push(ref.nid);
  }
  return nids;
}

async function* list(rooms: Rooms, nids: readonly number[]): AsyncGenerator<string> {
  for (let i = 0; i < nids.length; i += PIECE) {
    const texts = await rooms.parts.events.jsonByNids(nids.slice(i, i + PIECE));
    yield (i > 0 ? ',' : '') + texts.join(',');
  }
}
