import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import type { SyncSources } from './sources.ts';
import type { SyncRequest } from './sync.ts';

interface DeviceListsRequest extends Pick<SyncRequest, 'userId' | 'since'> {
  readonly sources: Pick<SyncSources, 'rooms' | 'memberships' | 'deviceListChanges'>;
}

/**
 * Whose devices the client must ask for again, and whom it need no longer track (spec: "Tracking the device list
 * for a user"): by changes of devices, and by who has begun or ceased to share an encrypted room with the user.
 */
export async function deviceListsSection(
  { sources, userId, since }: DeviceListsRequest,
  to: Positions,
  roomsWithNews: Iterable<string>,
): Promise<{ changed: string[]; left: string[] } | undefined> {
  if (since === undefined) return undefined;
  const changed = new Set<string>();
  const { joined, gone } = await membershipChanges(sources, userId, since, to, roomsWithNews);
  if (to.deviceLists > since.deviceLists)
    for (const other of await sources.deviceListChanges(since.deviceLists, to.deviceLists, userId))
      joined.add(other);
  if (joined.size === 0 && gone.size === 0) return undefined;
  const sharesRoom = await sharing(sources, userId);
  for (const other of joined) if (sharesRoom(other)) changed.add(other);
  const left = [...gone].filter((other) => !sharesRoom(other));
  if (changed.size === 0 && left.length === 0) return undefined;
  return { changed: [...changed], left };
}

/** Users who joined or left rooms of the user, and all members of rooms that the user joined or left themself. */
async function membershipChanges(
  sources: DeviceListsRequest['sources'],
  userId: string,
  since: Positions,
  to: Positions,
  roomsWithNews: Iterable<string>,
): Promise<{ joined: Set<string>; gone: Set<string> }> {
  const joined = new Set<string>();
  const gone = new Set<string>();
  const memberships = await sources.memberships.of(userId);
  for (const roomId of roomsWithNews) {
    const own = memberships.get(roomId);
    const room = await sources.rooms.get(roomId);
    if (!own || !room || room.lastMembershipChange <= since.events) continue;
    const ownChanged = own.pos > since.events && own.pos <= to.events;
    if (own.membership !== 'join' && !ownChanged) continue;
    // The user's other devices learn that those in a room which is new to them will track theirs.
    if (ownChanged && own.membership === 'join' && room.count('join') > 1) joined.add(userId);
    for (const [other, { membership, pos }] of room.members()) {
      if (other === userId) continue;
      if (ownChanged && membership === 'join') (own.membership === 'join' ? joined : gone).add(other);
      else if (pos > since.events && pos <= to.events) (membership === 'join' ? joined : gone).add(other);
    }
  }
  return { joined, gone };
}

/** A test whether another shares a joined room with the user now. */
async function sharing(
  sources: Pick<SyncSources, 'rooms' | 'memberships'>,
  userId: string,
): Promise<(other: string) => boolean> {
  const rooms = await Promise.all(
    (await sources.memberships.joined(userId)).map((id) => sources.rooms.get(id)),
  );
  return (other) => other === userId || rooms.some((room) => room?.isJoined(other));
}

export async function presenceEvents(
  { sources, userId, since, filter }: SyncRequest,
  to: Positions,
): Promise<object[]> {
  if (!sources.presenceEnabled || (since !== undefined && since.presence === to.presence)) return [];
  const changes = await sources.presence(since?.presence, to.presence);
  if (changes.length === 0) return [];
  const sharesRoom = await sharing(sources, userId);
  const wanted = filter.presence;
  return changes.filter(
    (event) => sharesRoom(event.sender) && (!wanted || matchesEventFilter(wanted, event)),
  );
}
