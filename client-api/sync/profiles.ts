import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import type { ProfileChanges } from '@trellis/users/profile-changes.ts';
import type { SharingChanges } from './people.ts';
import type { SyncRequest } from './view.ts';

export interface ProfileNewsRequest {
  readonly changes: ProfileChanges;
  readonly memberships: Memberships;
  readonly userId: string;
  readonly isLocal: (userId: string) => boolean;
  readonly fields: readonly string[];
  /** Where the client is; `undefined` where it has nothing. */
  readonly since: Pick<Positions, 'presence'> | undefined;
  readonly to: Pick<Positions, 'presence'>;
  /** Who began and who ceased to share a room with the user, seen by one room each. */
  readonly joined: ReadonlySet<string>;
  readonly gone: ReadonlySet<string>;
}

/** What of a user's profile is news, `undefined` for a field that it no longer has; `null`: the user is out of sight. */
export type ProfileNews = Map<string, Record<string, unknown> | null>;

/** Profiles in one answer. */
const MAX_PROFILES = 10_000;

/**
 * What is new of the profiles of local users with whom the user shares a room, and of their own: what changed, and
 * all that was asked for of those who are new to the client.
 */
export async function profileNews(request: ProfileNewsRequest): Promise<ProfileNews> {
  const { changes, memberships, userId, fields, since, to } = request;
  const news: ProfileNews = new Map();
  if (fields.length === 0) return news;
  if (since === undefined) {
    const users = await memberships.localUsersSharingRoomWith(userId);
    return changes.values([...users].slice(0, MAX_PROFILES), fields);
  }
  const wanted = new Set(fields);
  const changed = new Map<string, ReadonlySet<string>>();
  for (const [other, names] of await changes.between(since.presence, to.presence)) {
    const relevant = names.intersection(wanted);
    if (relevant.size > 0 && (await memberships.shareRoom(userId, other))) changed.set(other, relevant);
  }
  const newcomers = new Set([...request.joined].filter(request.isLocal).slice(0, MAX_PROFILES));
  const users = new Set([...changed.keys(), ...newcomers]);
  const values = await changes.values([...users], fields);
  for (const other of users) {
    const current = values.get(other) ?? {};
    const updates: Record<string, unknown> = newcomers.has(other) ? { ...current } : {};
    for (const name of changed.get(other) ?? []) updates[name] = current[name];
    if (Object.keys(updates).length > 0) news.set(other, updates);
  }
  for (const other of request.gone)
    if (request.isLocal(other) && !(await memberships.shareRoom(userId, other))) news.set(other, null);
  return news;
}

/** The section of `/sync` (MSC4429), for those who ask for it by their filter. */
export async function usersSection(
  { sources, userId, filter, since }: SyncRequest,
  to: Positions,
  { joined, gone }: SharingChanges,
): Promise<string | undefined> {
  const { profileChanges: changes, memberships, rooms } = sources;
  const fields = filter.profile_fields;
  if (!changes || fields === undefined || fields.length === 0) return undefined;
  const isLocal = (other: string) => serverNameOf(other) === rooms.parts.serverName;
  return usersJson(
    await profileNews({ changes, memberships, userId, isLocal, fields, since, to, joined, gone }),
  );
}

/** As JSON text; `undefined` when there is nothing to tell. */
export function usersJson(news: ProfileNews): string | undefined {
  if (news.size === 0) return undefined;
  const users = [...news].map(([userId, fields]) => {
    const updates =
      fields && Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, value ?? null]));
    return [userId, { profile_updates: updates }];
  });
  return JSON.stringify(Object.fromEntries(users));
}

/** The extension `org.matrix.msc4262.profiles` of sliding sync, as JSON text; `undefined` when there is nothing to tell. */
export function profilesExtensionJson(news: ProfileNews): string | undefined {
  if (news.size === 0) return undefined;
  const users = [...news].map(([userId, fields]) => {
    if (!fields) return [userId, null];
    const entries = Object.entries(fields);
    const updated = entries.filter(([, value]) => value !== undefined);
    const removed = entries.filter(([, value]) => value === undefined).map(([name]) => name);
    return [
      userId,
      {
        ...(updated.length > 0 && { updated: Object.fromEntries(updated) }),
        ...(removed.length > 0 && { removed }),
      },
    ];
  });
  return JSON.stringify({ users: Object.fromEntries(users) });
}
