import type { UserMembership } from '@trellis/rooms/memberships.ts';
import { type SharingChanges, sharingChanges } from '../sync/people.ts';
import type { Extension, Told } from './extension.ts';
import type { SlidingView } from './view.ts';

/** End-to-end encryption (MSC3884): keys left on the server, and whose devices changed. */
export async function e2eeExtension(view: SlidingView, sharing: SharingChanges): Promise<Extension> {
  const { sources, userId, deviceId } = view;
  const lists = await deviceLists(view, sharing);
  const counts = deviceId === undefined ? undefined : await sources.keyCounts(userId, deviceId);
  const json = {
    device_one_time_keys_count: counts?.oneTimeKeys ?? {},
    device_unused_fallback_key_types: counts?.unusedFallbackTypes ?? [],
    ...(lists && { device_lists: lists }),
  };
  return { json: JSON.stringify(json), empty: lists === undefined };
}

/** As in `/sync` (spec: "Tracking the device list for a user"), but without a look at every room of the user. */
async function deviceLists(
  { sources, userId, from, to }: SlidingView,
  { joined, gone }: SharingChanges,
): Promise<{ changed: string[]; left: string[] } | undefined> {
  if (from === undefined) return undefined;
  const changed = new Set(joined);
  if (to.deviceLists > from.deviceLists)
    for (const other of await sources.deviceListChanges(from.deviceLists, to.deviceLists, userId))
      changed.add(other);
  const still: string[] = [];
  for (const other of changed) if (await sources.memberships.shareRoom(userId, other)) still.push(other);
  const left: string[] = [];
  for (const other of gone) if (!(await sources.memberships.shareRoom(userId, other))) left.push(other);
  return still.length === 0 && left.length === 0 ? undefined : { changed: still, left };
}

/** Who began and who ceased to share a room with the user since the client looked. */
export async function sharingNews(view: SlidingView, { memberships, news }: Told): Promise<SharingChanges> {
  const { sources, userId, from, to } = view;
  if (from === undefined) return { joined: new Set(), gone: new Set() };
  const rooms = roomsWithNews(view, memberships, news.events);
  return sharingChanges({ sources, userId, since: from }, to, rooms);
}

/** All rooms of the user in which something happened, whether the client knows them or not. */
function roomsWithNews(
  { sources, facts, userId, from }: SlidingView,
  memberships: ReadonlyMap<string, UserMembership>,
  known: ReadonlySet<string>,
): UserMembership[] {
  const feedReachesBack = from !== undefined && sources.notifier.feed(userId).covers(from);
  if (feedReachesBack) return [...known].flatMap((roomId) => memberships.get(roomId) ?? []);
  return [...memberships.values()].filter(
    ({ roomId, pos }) => pos > (from?.events ?? 0) || (facts.activity(roomId) ?? 0) > (from?.events ?? 0),
  );
}
