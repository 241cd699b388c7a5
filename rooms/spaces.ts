import { type JsonObject, splitStateKey } from '@trellis/protocol/event.ts';
import { isRoomId, isServerName } from '@trellis/protocol/identifiers.ts';
import type { Room } from './room.ts';
import { type RoomSummary, summariseState } from './room-summary.ts';
import type { Rooms } from './rooms.ts';

/** An `m.space.child` event as hierarchies show it. */
export interface ChildState {
  readonly type: 'm.space.child';
  readonly state_key: string;
  readonly content: JsonObject;
  readonly sender: string;
  readonly origin_server_ts: number;
}

/** A room of a hierarchy; the children are there for spaces only. */
export interface SpaceRoom extends RoomSummary {
  children_state: ChildState[];
}

/** Children of a space that are looked at. */
const MAX_CHILDREN = 1000;
/** Servers of one child. */
const MAX_VIA = 50;

/** A room that this server is in, described, with the children of a space in their order. */
export async function describeRoom(rooms: Rooms, room: Room): Promise<SpaceRoom> {
  const summary = await summariseState(rooms, room.roomId, room.state);
  return {
    ...summary,
    num_joined_members: room.count('join'),
    children_state: summary.room_type === 'm.space' ? await childrenOf(rooms, room) : [],
  };
}

async function childrenOf(rooms: Rooms, room: Room): Promise<ChildState[]> {
  const ids: string[] = [];
  for (const [key, ref] of room.state.entries())
    if (splitStateKey(key)[0] === 'm.space.child') ids.push(ref.eventId);
  const events = await rooms.parts.events.getMany(ids);
  const children = [...events.values()].map(
    ({ stateKey, content, sender, originServerTs }): ChildState => ({
      type: 'm.space.child',
      state_key: stateKey!,
      content,
      sender,
      origin_server_ts: originServerTs,
    }),
  );
  return inOrder(children);
}

/** Valid children, ordered (spec: "Ordering of children within a space"). Those without servers were taken out. */
export function inOrder(children: readonly ChildState[]): ChildState[] {
  return children
    .filter((child) => isRoomId(child.state_key) && viaOf(child).length > 0)
    .sort(
      (a, b) =>
        compare(orderOf(a), orderOf(b)) ||
        a.origin_server_ts - b.origin_server_ts ||
        compare(a.state_key, b.state_key),
    )
    .slice(0, MAX_CHILDREN);
}

/** Servers to ask for a child. */
export function viaOf({ content }: ChildState): string[] {
  if (!Array.isArray(content.via)) return [];
  return content.via
    .filter((server) => typeof server === 'string' && isServerName(server))
    .slice(0, MAX_VIA) as string[];
}

/** Those without a valid order come after all that have one: `~` is the last character that an order may have. */
function orderOf({ content }: ChildState): string {
  const { order } = content;
  return typeof order === 'string' && /^[\x20-\x7e]{1,50}$/.test(order) ? order : '\x7f';
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Who a room is to be described to: a user, or another server on behalf of its users. */
export interface Onlooker {
  /** Membership in a room, the strongest of several users': `join` before `invite`. */
  membershipIn(roomId: string): Promise<string | undefined>;
}

/**
 * Whether a room may be described to somebody (spec: `/hierarchy`): who is in it, is invited, could join or knock, or
 * could read it anyway.
 */
export async function mayBeDescribed(summary: RoomSummary, onlooker: Onlooker): Promise<boolean> {
  if (summary.world_readable || isOpen(summary.join_rule)) return true;
  const membership = await onlooker.membershipIn(summary.room_id);
  if (membership === 'join' || membership === 'invite') return true;
  for (const roomId of summary.allowed_room_ids ?? [])
    if ((await onlooker.membershipIn(roomId)) === 'join') return true;
  return false;
}

/** Everybody may join or knock. */
export function isOpen(joinRule: string | undefined): boolean {
  return joinRule === 'public' || joinRule === 'knock' || joinRule === 'knock_restricted';
}
