import type { Filter } from '@trellis/protocol/filters.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Notifier } from '@trellis/rooms/notifier.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StickyEvents } from '@trellis/rooms/sticky-events.ts';
import type { ProfileChanges } from '@trellis/users/profile-changes.ts';

export interface AccountDataItem {
  readonly roomId: string | null;
  readonly type: string;
  readonly content: object;
}

export interface UnreadCounts {
  readonly notify: number;
  readonly highlight: number;
  /** By thread root, when the client wants threads apart; `notify` and `highlight` are then those of the main timeline. */
  readonly threads: ReadonlyMap<string, { notify: number; highlight: number }>;
}

export interface PresenceEvent {
  readonly type: 'm.presence';
  readonly sender: string;
  readonly content: object;
}

/** What a sync reads besides rooms. The composition root fits the services of `users/` to it. */
export interface SyncSources {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly notifier: Notifier;
  /** A stored filter, or the inline JSON given. M_INVALID_PARAM, M_BAD_JSON, M_NOT_FOUND. */
  filter(userId: string, filter: string | undefined): Promise<Filter>;
  /** Account data changed at positions (from, to]; all of it when `from` is undefined. */
  accountData(userId: string, from: number | undefined, to: number): Promise<AccountDataItem[]>;
  /** The content of an `m.receipt` event with what is new in (from, to], all when `from` is undefined. */
  receipts(roomId: string, userId: string, from: number | undefined, to: number): Promise<object | undefined>;
  /** Who types in the room now. */
  typing(roomId: string): readonly string[];
  /** Messages for the device after `from`, up to `to`, at the most `limit`; the last one's position. */
  toDevice(
    userId: string,
    deviceId: string,
    from: number,
    to: number,
    limit: number,
  ): Promise<{ events: object[]; upTo: number; more: boolean }>;
  /** The device got everything up to `position`. */
  toDeviceReceived(userId: string, deviceId: string, position: number): Promise<void>;
  /** Users whose device lists or keys changed in (from, to], as far as `userId` may see it. */
  deviceListChanges(from: number, to: number, userId: string): Promise<Iterable<string>>;
  keyCounts(
    userId: string,
    deviceId: string,
  ): Promise<{ oneTimeKeys: Record<string, number>; unusedFallbackTypes: string[] }>;
  /** `m.presence` events of the users whose presence changed in (from, to], of all when `from` is undefined. */
  presence(from: number | undefined, to: number): Promise<PresenceEvent[]>;
  /** `m.presence` events of those of the users of whom there is something to tell. */
  presenceOf(userIds: Iterable<string>): PresenceEvent[];
  presenceEnabled: boolean;
  /** A sync shows that the user is there; `told`: others know. `done` is to be called when the sync is answered. */
  touchPresence(
    userId: string,
    deviceId: string,
    presence: 'online' | 'unavailable' | 'offline',
  ): { readonly told: Promise<void> | undefined; done(): void };
  unread(userId: string, roomId: string): Promise<UnreadCounts>;
  ignoredUsers(userId: string): Promise<ReadonlySet<string>>;
  /** Events that are told of whatever the limit of the timeline is (MSC4354). */
  readonly sticky?: Pick<StickyEvents, 'has' | 'between'>;
  /** Changes of local users' profiles (MSC4429, MSC4262), in the stream of presence. */
  readonly profileChanges?: ProfileChanges;
  /** A device has all events up to this position: their senders may want to know. */
  readonly confirmed?: (userId: string, events: number) => void;
  /** The user does not want to see invites by the sender (spec: "Invite permission"). */
  hidesInvite(userId: string, sender: string): Promise<boolean>;
}
