import { type JsonObject, splitStateKey } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { type Facts, factsIn, NO_FACTS, type RoomFacts } from '@trellis/rooms/room-facts.ts';
import type { SyncSources } from '../sync/sources.ts';
import type { FilterBody } from './schemas.ts';

export interface FilteredRoomsDeps {
  readonly sources: Pick<SyncSources, 'rooms' | 'memberships'>;
  readonly facts: RoomFacts;
}

/** What filters ask of a user's rooms. */
export interface FilterableRooms {
  readonly userId: string;
  membership(roomId: string): UserMembership | undefined;
  isDirect(roomId: string): boolean;
  tags(roomId: string): ReadonlySet<string> | undefined;
  all(): Iterable<string>;
  has(roomId: string): boolean;
}

interface Kept {
  readonly rooms: Set<string>;
  /** Rooms that changed since they were looked at. */
  readonly pending: Set<string>;
}

/** Combinations of filters kept for a user: those of a few devices. */
const MAX_FILTERS = 20;
const NONE: ReadonlySet<string> = new Set();

/** Which of a user's rooms pass the filters of lists. Each room is tested again only when it changed. */
export class FilteredRooms {
  readonly #deps: FilteredRoomsDeps;
  readonly #rooms: FilterableRooms;
  readonly #kept = new RecentlyUsed<string, Kept>(MAX_FILTERS);
  /** Of invites and knocks, by the stripped state that came with them. */
  readonly #stripped = new Map<string, Facts>();
  readonly #children = new RecentlyUsed<string, { state: number; rooms: ReadonlySet<string> }>(100);

  constructor(deps: FilteredRoomsDeps, rooms: FilterableRooms) {
    this.#deps = deps;
    this.#rooms = rooms;
  }

  clear(): void {
    this.#kept.clear();
    this.#stripped.clear();
  }

  changed(roomId: string): void {
    this.#stripped.delete(roomId);
    for (const { pending } of this.#kept.values()) pending.add(roomId);
  }

  /** @returns `undefined` when all rooms pass */
  async matching(filters: FilterBody): Promise<ReadonlySet<string> | undefined> {
    const names = Object.keys(filters).filter((name) => filters[name as keyof FilterBody] !== undefined);
    if (names.length === 0) return undefined;
    const spaces = filters.spaces && (await this.#spaces(filters.spaces));
    const key = JSON.stringify([
      names.sort().map((name) => [name, filters[name as keyof FilterBody]]),
      spaces?.key,
    ]);
    let kept = this.#kept.get(key);
    if (!kept) {
      kept = { rooms: new Set(), pending: new Set(this.#rooms.all()) };
      this.#kept.set(key, kept);
    }
    if (kept.pending.size === 0) return kept.rooms;
    const pending = [...kept.pending];
    const facts = needsFacts(filters) ? await this.#facts(pending) : undefined;
    for (const roomId of pending) {
      kept.pending.delete(roomId);
      const membership = this.#rooms.has(roomId) ? this.#rooms.membership(roomId) : undefined;
      const passes =
        membership && this.#passes(filters, membership, facts?.get(roomId) ?? NO_FACTS, spaces?.rooms);
      if (passes) kept.rooms.add(roomId);
      else kept.rooms.delete(roomId);
    }
    return kept.rooms;
  }

  #passes(
    filters: FilterBody,
    { roomId, membership }: UserMembership,
    facts: Facts,
    inSpaces: ReadonlySet<string> | undefined,
  ): boolean {
    const {
      is_dm: direct,
      is_encrypted: encrypted,
      is_invited,
      is_invite,
      tags,
      not_tags: notTags,
    } = filters;
    const invited = is_invited ?? is_invite;
    const own = this.#rooms.tags(roomId) ?? NONE;
    return (
      (direct === undefined || this.#rooms.isDirect(roomId) === direct) &&
      (encrypted === undefined || facts.encrypted === encrypted) &&
      (invited === undefined || (membership === 'invite') === invited) &&
      (filters.room_types === undefined || filters.room_types.includes(facts.type)) &&
      !filters.not_room_types?.includes(facts.type) &&
      (tags === undefined || tags.some((tag) => own.has(tag))) &&
      !notTags?.some((tag) => own.has(tag)) &&
      (inSpaces === undefined || inSpaces.has(roomId)) &&
      (filters.room_name_like === undefined || isLike(facts.name, filters.room_name_like))
    );
  }

  async #facts(roomIds: readonly string[]): Promise<Map<string, Facts>> {
    const { facts, sources } = this.#deps;
    const found = await facts.of(roomIds);
    for (const roomId of roomIds) {
      const membership = this.#rooms.membership(roomId)?.membership;
      if (membership !== 'invite' && membership !== 'knock') continue;
      let stripped = this.#stripped.get(roomId);
      if (!stripped) {
        const text = await sources.memberships.strippedState(this.#rooms.userId, roomId);
        stripped = text === undefined ? found.get(roomId) : factsIn(decodeJson(text) as JsonObject[]);
        this.#stripped.set(roomId, stripped ?? NO_FACTS);
      }
      if (stripped) found.set(roomId, stripped);
    }
    return found;
  }

  /** Rooms that are directly in one of the spaces, as far as the user is in those. */
  async #spaces(spaceIds: readonly string[]): Promise<{ rooms: ReadonlySet<string>; key: string }> {
    const rooms = new Set<string>();
    const states: number[] = [];
    for (const spaceId of new Set(spaceIds)) {
      if (this.#rooms.membership(spaceId)?.membership !== 'join') continue;
      const space = await this.#deps.sources.rooms.get(spaceId);
      if (!space) continue;
      states.push(space.state.id);
      for (const child of await this.#childrenOf(space)) rooms.add(child);
    }
    return { rooms, key: states.join(' ') };
  }

  async #childrenOf(space: Room): Promise<ReadonlySet<string>> {
    const known = this.#children.get(space.roomId);
    if (known?.state === space.state.id) return known.rooms;
    const { state } = space;
    const refs = new Map<string, string>();
    for (const [key, { eventId }] of state.entries()) {
      const [type, child] = splitStateKey(key);
      if (type === 'm.space.child') refs.set(child, eventId);
    }
    const events = await this.#deps.sources.rooms.parts.events.getMany(refs.values());
    const rooms = new Set<string>();
    // Without servers to join by, a room is no longer in the space (spec: `m.space.child`).
    for (const [child, eventId] of refs)
      if (Array.isArray(events.get(eventId)?.content.via)) rooms.add(child);
    this.#children.set(space.roomId, { state: state.id, rooms });
    return rooms;
  }
}

function needsFacts({ is_encrypted, room_types, not_room_types, room_name_like }: FilterBody): boolean {
  return [is_encrypted, room_types, not_room_types, room_name_like].some((filter) => filter !== undefined);
}

function isLike(name: string | undefined, part: string): boolean {
  return name?.toLowerCase().includes(part.toLowerCase()) === true;
}
