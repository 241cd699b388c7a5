import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import type { SyncSources } from './sources.ts';
import type { SyncRequest } from './view.ts';

interface PeopleRequest extends Pick<SyncRequest, 'userId' | 'since'> {
  readonly sources: Pick<SyncSources, 'rooms' | 'memberships' | 'deviceListChanges'>;
}

/** Who began and who ceased to share a room with the user, seen by one room each. */
export interface SharingChanges {
  readonly joined: ReadonlySet<string>;
  readonly gone: ReadonlySet<string>;
}

/**
 * Whose devices the client must ask for again, and whom it need no longer track (spec: "Tracking the device list
 * for a user"): by changes of devices, and by who has begun or ceased to share an encrypted room with the user.
 */
export async function deviceListsSection(
  { sources, userId, since }: PeopleRequest,
  to: Positions,
  { joined, gone }: SharingChanges,
): Promise<{ changed: string[]; left: string[] } | undefined> {
  if (since === undefined) return undefined;
  const changed = new Set(joined);
  if (to.deviceLists > since.deviceLists)
    for (const other of await sources.deviceListChanges(since.deviceLists, to.deviceLists, userId))
      changed.add(other);
  if (changed.size === 0 && gone.size === 0) return undefined;
  const sharesRoom = await sharing(sources, userId);
  const still = [...changed].filter(sharesRoom);
  const left = [...gone].filter((other) => !sharesRoom(other));
  if (still.length === 0 && left.length === 0) return undefined;
  return { changed: still, left };
}

/** Users who joined or left rooms of the user, and all members of rooms that the user joined or left themself. */
export async function sharingChanges(
  { sources, userId, since }: PeopleRequest,
  to: Positions,
  roomsWithNews: Iterable<UserMembership>,
): Promise<SharingChanges> {
  const joined = new Set<string>();
  const gone = new Set<string>();
  if (since === undefined) return { joined, gone };
  for (const own of roomsWithNews) {
    const room = await sources.rooms.get(own.roomId);
    if (!room || room.lastMembershipChange <= since.events) continue;
    const ownChanged = own.pos > since.events && own.pos <= to.events;
    if (own.membership !== 'join' && !ownChanged) continue;
    // The user's other devices learn that those in a room which is new to them will track theirs.
    if (ownChanged && own.membership === 'join' && room.count('join') > 1) joined.add(userId);
    // All members became known, after a join that had left them out.
    const isCompleted =
      room.completeSince > since.events &&
      room.completeSince <= to.events &&
      room.state.get('m.room.encryption', '') !== undefined;
    for (const [other, { membership, pos }] of room.members()) {
      if (other === userId) continue;
      if (ownChanged && membership === 'join') (own.membership === 'join' ? joined : gone).add(other);
      else if (isCompleted && membership === 'join') joined.add(other);
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

/** Changed presence, and that of those who began to share a room with the user: it may be old, but is news to them. */
export async function presenceEvents(
  { sources, userId, since, filter }: SyncRequest,
  to: Positions,
  newcomers: ReadonlySet<string>,
): Promise<object[]> {
  if (!sources.presenceEnabled) return [];
  const isChanged = since === undefined || since.presence !== to.presence;
  const changes = isChanged ? await sources.presence(since?.presence, to.presence) : [];
  if (newcomers.size > 0) {
    const told = new Set(changes.map(({ sender }) => sender));
    changes.push(...sources.presenceOf(newcomers).filter(({ sender }) => !told.has(sender)));
  }
  if (changes.length === 0) return [];
  const sharesRoom = await sharing(sources, userId);
  const wanted = filter.presence;
  return changes.filter(
    (event) => sharesRoom(event.sender) && (!wanted || matchesEventFilter(wanted, event)),
  );
}
