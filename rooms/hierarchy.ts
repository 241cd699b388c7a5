import { forbidden, invalidParam } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Memberships } from './memberships.ts';
import type { Rooms } from './rooms.ts';
import {
  type ChildState,
  describeRoom,
  mayBeDescribed,
  type Onlooker,
  type SpaceRoom,
  viaOf,
} from './spaces.ts';

/** What another server tells of a room and its children, checked. */
export interface RemoteHierarchy {
  readonly room: SpaceRoom;
  readonly children: readonly SpaceRoom[];
  readonly inaccessible: readonly string[];
}

/** Asks other servers for rooms that this one is not in. Implemented by federation. */
export interface RemoteSpaces {
  /** `undefined` when the server tells nothing. */
  hierarchy(server: string, roomId: string, suggestedOnly: boolean): Promise<RemoteHierarchy | undefined>;
}

export interface HierarchyQuery {
  readonly suggestedOnly: boolean;
  readonly maxDepth: number;
  readonly limit: number;
  /** `next_batch` of the page before. */
  readonly from: string | undefined;
}

/** Rooms of one space that can be paged through. */
const MAX_ROOMS = 5_000;
/** Servers asked for one room, and rooms asked for in one request. */
const MAX_SERVERS = 3;
const MAX_REMOTE_ROOMS = 200;
/** Answers of other servers are good for this long, in milliseconds; each process asks for itself. */
const REMOTE_TTL = 60_000;

interface Visit {
  readonly roomId: string;
  readonly depth: number;
  readonly via: readonly string[];
}

/** Space trees as users may see them (spec: "Discovering rooms within spaces"). */
export class Hierarchies {
  readonly #rooms: Rooms;
  readonly #memberships: Memberships;
  readonly #remote: RemoteSpaces;
  readonly #answers = new RecentlyUsed<string, RemoteHierarchy>(2_000, { ttl: REMOTE_TTL });

  constructor(rooms: Rooms, memberships: Memberships, remote: RemoteSpaces) {
    this.#rooms = rooms;
    this.#memberships = memberships;
    this.#remote = remote;
  }

  /** @throws M_FORBIDDEN when the user may not see the space, M_INVALID_PARAM */
  async walk(
    rootId: string,
    userId: string,
    query: HierarchyQuery,
  ): Promise<{ rooms: SpaceRoom[]; next?: string }> {
    const skip = skipped(query);
    const walk = new Walk(query.suggestedOnly);
    const onlooker = this.onlooker(userId);
    const found: SpaceRoom[] = [];
    const via = rootId.includes(':') ? [rootId.slice(rootId.indexOf(':') + 1)] : [];
    // Depth first, each space before its children: the last of the stack comes next.
    const stack: Visit[] = [{ roomId: rootId, depth: 0, via }];
    for (let visit = stack.pop(); visit; visit = stack.pop()) {
      if (!walk.enter(visit.roomId)) continue;
      const room = await this.#describe(visit, walk);
      if (!room || !(await mayBeDescribed(room, onlooker))) {
        if (visit.depth === 0) throw forbidden('You are not allowed to view this room');
        continue;
      }
      const children = query.suggestedOnly
        ? room.children_state.filter(({ content }) => content.suggested === true)
        : room.children_state;
      if (found.length === skip + query.limit)
        return { rooms: found.slice(skip), next: token(query, found.length) };
      found.push({ ...room, children_state: children });
      if (found.length >= MAX_ROOMS) break;
      if (visit.depth < query.maxDepth) stack.push(...visits(children, visit.depth + 1));
    }
    return { rooms: found.slice(skip) };
  }

  /** A room that this server is in, or as one of `via` tells of it. */
  async describe(roomId: string, via: readonly string[]): Promise<SpaceRoom | undefined> {
    return this.#describe({ roomId, depth: 0, via }, new Walk(false));
  }

  onlooker(userId: string): Onlooker {
    return {
      membershipIn: async (roomId) => (await this.#memberships.of(userId)).get(roomId)?.membership,
    };
  }

  async #describe({ roomId, via }: Visit, walk: Walk): Promise<SpaceRoom | undefined> {
    const live = await this.#rooms.get(roomId);
    if (live?.isResident) return describeRoom(this.#rooms, live);
    const known = walk.known.get(roomId);
    // The child of a child is told of without its children.
    if (known && (known.room_type !== 'm.space' || known.children_state.length > 0)) return known;
    if (walk.inaccessible.has(roomId)) return undefined;
    for (const server of via.filter((name) => name !== this.#rooms.parts.serverName).slice(0, MAX_SERVERS)) {
      if (!walk.mayAsk()) return known;
      const answer = await this.#ask(server, roomId, walk.suggestedOnly);
      if (!answer) continue;
      for (const child of answer.children)
        if (!walk.known.has(child.room_id)) walk.known.set(child.room_id, child);
      for (const id of answer.inaccessible) walk.inaccessible.add(id);
      return answer.room;
    }
    return known;
  }

  /** Only what was told is remembered: what a server does not tell today it may tell in a minute. */
  async #ask(server: string, roomId: string, suggestedOnly: boolean): Promise<RemoteHierarchy | undefined> {
    const key = `${server} ${suggestedOnly} ${roomId}`;
    const known = this.#answers.get(key);
    if (known) return known;
    const answer = await this.#remote.hierarchy(server, roomId, suggestedOnly);
    if (answer) this.#answers.set(key, answer);
    return answer;
  }
}

/** What one request has come across. */
class Walk {
  readonly suggestedOnly: boolean;
  readonly known = new Map<string, SpaceRoom>();
  readonly inaccessible = new Set<string>();
  readonly #entered = new Set<string>();
  #asked = 0;

  constructor(suggestedOnly: boolean) {
    this.suggestedOnly = suggestedOnly;
  }

  /** False for a room that was there before: loops are legal to send, if not to make. */
  enter(roomId: string): boolean {
    if (this.#entered.has(roomId)) return false;
    this.#entered.add(roomId);
    return true;
  }

  mayAsk(): boolean {
    return ++this.#asked <= MAX_REMOTE_ROOMS;
  }
}

function visits(children: readonly ChildState[], depth: number): Visit[] {
  return children.map((child) => ({ roomId: child.state_key, depth, via: viaOf(child) })).reverse();
}

/** The token says how many rooms were given and with which parameters: the walk begins anew and passes over them. */
function token({ suggestedOnly, maxDepth }: HierarchyQuery, given: number): string {
  return `h${given}_${maxDepth}_${suggestedOnly ? 1 : 0}`;
}

function skipped({ from, suggestedOnly, maxDepth }: HierarchyQuery): number {
  if (from === undefined) return 0;
  const [, given, depth, suggested] = /^h(\d{1,5})_(\d{1,5})_([01])$/.exec(from) ?? [];
  if (given === undefined) throw invalidParam('Unknown pagination token');
  if (Number(depth) !== maxDepth || (suggested === '1') !== suggestedOnly)
    throw invalidParam('suggested_only and max_depth cannot change on paginated requests');
  return Number(given);
}
