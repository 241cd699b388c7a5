import { Lock } from '@trellis/rooms/lock.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { FeedEntry, Positions } from '@trellis/rooms/notifier.ts';
import type { RoomFacts } from '@trellis/rooms/room-facts.ts';
import { LRUCache } from 'lru-cache';
import type { SyncSources } from '../sync/sources.ts';
import { FilteredRooms } from './filtered-rooms.ts';
import type { FilterBody } from './schemas.ts';

export interface UserRoomsDeps {
  readonly sources: Pick<
    SyncSources,
    'rooms' | 'memberships' | 'notifier' | 'accountData' | 'ignoredUsers' | 'hidesInvite'
  >;
  readonly facts: RoomFacts;
}

/** Account data that decides which rooms a user sees, and whose change makes the list be made anew. */
const DECIDING: ReadonlySet<string> = new Set([
  'm.ignored_user_list',
  'm.invite_permission_config',
  'org.matrix.msc4155.invite_permission_config',
]);
const MAX_DIRECT_CHANGES = 1_000;

/**
 * The rooms of one user in the order of their last activity, with what the lists of sliding sync are filtered by.
 * Built once; later only what the user's feed names is looked at, when a client asks: an event costs nothing here.
 */
export class UserRooms {
  readonly userId: string;
  readonly lock = new Lock();
  readonly #deps: UserRoomsDeps;
  #asOf: Positions | undefined;
  /** Oldest first, with holes where rooms moved away from. */
  #order: Array<string | undefined> = [];
  #slots = new Map<string, number>();
  #memberships: ReadonlyMap<string, UserMembership> = new Map();
  #direct: ReadonlySet<string> = new Set();
  /** Positions in the stream of account data at which rooms began or ceased to be direct chats. */
  readonly #directChanges = new Map<string, number>();
  readonly #tags = new Map<string, ReadonlySet<string>>();
  readonly #filtered: FilteredRooms;

  constructor(userId: string, deps: UserRoomsDeps) {
    this.userId = userId;
    this.#deps = deps;
    this.#filtered = new FilteredRooms(deps, {
      userId,
      membership: (roomId) => this.#memberships.get(roomId),
      isDirect: (roomId) => this.#direct.has(roomId),
      tags: (roomId) => this.#tags.get(roomId),
      all: () => this.#slots.keys(),
      has: (roomId) => this.#slots.has(roomId),
    });
  }

  get size(): number {
    return this.#slots.size;
  }

  get memberships(): ReadonlyMap<string, UserMembership> {
    return this.#memberships;
  }

  isDirect(roomId: string): boolean {
    return this.#direct.has(roomId);
  }

  /** Whether the room began or ceased to be a direct chat after that position of account data. */
  directChanged(roomId: string, since: number): boolean {
    return (this.#directChanges.get(roomId) ?? 0) > since;
  }

  /** The rooms, the one with the newest activity first. */
  *newestFirst(): Generator<string> {
    for (let i = this.#order.length - 1; i >= 0; i--) {
      const roomId = this.#order[i];
      if (roomId !== undefined) yield roomId;
    }
  }

  /** Those of the rooms that pass; `undefined` when all do. To be called under `lock`. */
  matching(filters: FilterBody): Promise<ReadonlySet<string> | undefined> {
    return this.#filtered.matching(filters);
  }

  /** Takes in what happened up to a position. To be called under `lock`. */
  async update(to: Positions): Promise<void> {
    const { notifier, memberships, accountData } = this.#deps.sources;
    const feed = notifier.feed(this.userId);
    const asOf = this.#asOf;
    this.#memberships = await memberships.of(this.userId);
    if (asOf === undefined || !feed.covers(asOf)) return this.#build(to);
    const news = feed.between(asOf, to);
    if (news.some(({ stream }) => stream === 'accountData')) {
      const changed = await accountData(this.userId, asOf.accountData, to.accountData);
      if (changed.some(({ roomId, type }) => roomId === null && DECIDING.has(type))) return this.#build(to);
      for (const item of changed) this.#takeAccountData(item, to.accountData);
    }
    await this.#move(news);
    this.#asOf = to;
  }

  async #build(to: Positions): Promise<void> {
    const { sources, facts } = this.#deps;
    const before = this.#asOf;
    // What happens from here on is for the next update to take in.
    this.#asOf = to;
    try {
      const listed: string[] = [];
      for (const membership of this.#memberships.values())
        if (await this.#isListed(membership)) listed.push(membership.roomId);
      await facts.loadActivity(
        listed.filter((roomId) => this.#memberships.get(roomId)?.membership === 'join'),
      );
      this.#setOrder(this.#sorted(listed));
      this.#tags.clear();
      for (const item of await sources.accountData(this.userId, undefined, to.accountData))
        this.#takeAccountData(item, before === undefined ? 0 : to.accountData);
      this.#filtered.clear();
    } catch (error) {
      this.#asOf = undefined;
      throw error;
    }
  }

  async #move(news: readonly FeedEntry[]): Promise<void> {
    const changed = new Set<string>();
    for (const { stream, roomId } of news) if (stream === 'events' && roomId !== null) changed.add(roomId);
    if (changed.size === 0) return;
    for (const roomId of changed) {
      this.#filtered.changed(roomId);
      const slot = this.#slots.get(roomId);
      if (slot !== undefined) this.#order[slot] = undefined;
      this.#slots.delete(roomId);
      const membership = this.#memberships.get(roomId);
      if (!membership || !(await this.#isListed(membership))) changed.delete(roomId);
    }
    for (const roomId of this.#sorted([...changed])) this.#append(roomId);
    if (this.#order.length > 2 * this.#slots.size + 100)
      this.#setOrder(this.#order.filter((roomId) => roomId !== undefined));
  }

  #sorted(roomIds: string[]): string[] {
    const places = new Map(roomIds.map((roomId) => [roomId, this.#place(roomId)]));
    return roomIds.sort((a, b) => places.get(a)! - places.get(b)!);
  }

  /** Where the room stands: by its newest event; for who is not in it, by what became of their membership. */
  #place(roomId: string): number {
    const membership = this.#memberships.get(roomId)!;
    if (membership.membership !== 'join') return membership.pos;
    return Math.max(membership.pos, this.#deps.facts.activity(roomId) ?? 0);
  }

  #setOrder(order: string[]): void {
    this.#order = order;
    this.#slots = new Map(order.map((roomId, i) => [roomId, i]));
  }

  #append(roomId: string): void {
    this.#slots.set(roomId, this.#order.length);
    this.#order.push(roomId);
  }

  /**
   * Rooms that the user left are not in the list, those that they were removed from are: they may not know of it yet
   * (MSC4186, "Lists").
   */
  async #isListed({ membership, sender, forgotten }: UserMembership): Promise<boolean> {
    if (forgotten) return false;
    if (membership === 'leave') return sender !== this.userId;
    if (membership !== 'invite') return true;
    const { ignoredUsers, hidesInvite } = this.#deps.sources;
    return !(await ignoredUsers(this.userId)).has(sender) && !(await hidesInvite(this.userId, sender));
  }

  #takeAccountData(item: { roomId: string | null; type: string; content: object }, pos: number): void {
    const { roomId, type, content } = item;
    if (roomId === null && type === 'm.direct') this.#setDirect(directRooms(content), pos);
    if (roomId === null || type !== 'm.tag') return;
    const { tags } = content as { tags?: unknown };
    const names = typeof tags === 'object' && tags !== null ? Object.keys(tags) : [];
    if (names.length > 0) this.#tags.set(roomId, new Set(names));
    else this.#tags.delete(roomId);
    this.#filtered.changed(roomId);
  }

  #setDirect(direct: ReadonlySet<string>, pos: number): void {
    for (const roomId of direct.symmetricDifference(this.#direct)) {
      this.#filtered.changed(roomId);
      this.#directChanges.delete(roomId);
      if (pos > 0) this.#directChanges.set(roomId, pos);
      if (this.#directChanges.size > MAX_DIRECT_CHANGES)
        this.#directChanges.delete(this.#directChanges.keys().next().value!);
    }
    this.#direct = direct;
  }
}

/** `m.direct`: by user the rooms that are direct chats with them. */
function directRooms(content: object): Set<string> {
  const rooms = new Set<string>();
  for (const list of Object.values(content) as unknown[])
    if (Array.isArray(list)) for (const roomId of list) if (typeof roomId === 'string') rooms.add(roomId);
  return rooms;
}

/** Rooms in the lists of all users together that are kept. */
const MAX_SIZE = 1_000_000;

/** The room lists of those users who use sliding sync. */
export class RoomLists {
  readonly #deps: UserRoomsDeps;
  readonly #users = new LRUCache<string, UserRooms>({ maxSize: MAX_SIZE });

  constructor(deps: UserRoomsDeps) {
    this.#deps = deps;
  }

  /** Runs `read` on the user's rooms as they are at that position, one reader at a time. */
  async read<T>(userId: string, to: Positions, read: (rooms: UserRooms) => Promise<T>): Promise<T> {
    let rooms = this.#users.get(userId);
    if (!rooms) {
      rooms = new UserRooms(userId, this.#deps);
      this.#users.set(userId, rooms, { size: 10 });
    }
    const list = rooms;
    return list.lock.run(async () => {
      const { size } = list;
      await list.update(to);
      if (list.size !== size && this.#users.peek(userId) === list) {
        this.#users.delete(userId);
        this.#users.set(userId, list, { size: 10 + list.size });
      }
      return read(list);
    });
  }
}
