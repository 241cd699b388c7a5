import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';

/** Members who help to name a room without a name. */
const HEROES = 5;

export interface RoomSummary {
  'm.joined_member_count': number;
  'm.invited_member_count': number;
  'm.heroes'?: string[];
}

/** A room's `summary` (spec: `/sync`, RoomSummary). Heroes only where the room has neither name nor alias. */
export async function roomSummary(rooms: Rooms, room: Room, userId: string): Promise<RoomSummary> {
  const summary: RoomSummary = {
    'm.joined_member_count': room.count('join'),
    'm.invited_member_count': room.count('invite'),
  };
  for (const [type, member] of [
    ['m.room.name', 'name'],
    ['m.room.canonical_alias', 'alias'],
  ] as const) {
    const ref = room.state.get(type, '');
    const event = ref && (await rooms.parts.events.get(ref.eventId));
    if (typeof event?.content[member] === 'string' && event.content[member] !== '') return summary;
  }
  summary['m.heroes'] = heroes(room, userId);
  return summary;
}

/** The first members by how long they have been in, who are joined or invited; else those who left. */
export function heroes(room: Room, userId: string): string[] {
  const present: Array<[pos: number, userId: string]> = [];
  const gone: Array<[pos: number, userId: string]> = [];
  for (const [id, { membership, pos }] of room.members()) {
    if (id === userId) continue;
    if (membership === 'join' || membership === 'invite') keepFirst(present, pos, id);
    else if (membership === 'leave' || membership === 'ban') keepFirst(gone, pos, id);
  }
  return (present.length > 0 ? present : gone).map(([, id]) => id);
}

function keepFirst(list: Array<[number, string]>, pos: number, id: string): void {
  if (list.length === HEROES && pos >= list[HEROES - 1]![0]) return;
  list.push([pos, id]);
  list.sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1));
  list.length = Math.min(list.length, HEROES);
}
