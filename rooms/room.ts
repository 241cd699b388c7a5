import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Commits } from './commits.ts';
import type { PartialState } from './partial-state/partial-rooms.ts';
import type { TimelineTail } from './timeline-tail.ts';

export interface Member {
  readonly membership: string;
  readonly eventId: string;
  readonly sender: string;
  /** Position in the stream of events at which the membership became this. */
  readonly pos: number;
}

/**
 * The live state of a room: what is needed to build, authorise and place its next event without a look at the
 * database. Changed only by `append.ts`, under the room's lock, and at once: the next event builds on one that is still
 * being committed. If a commit fails, the object is dropped and read again. What other processes append reaches it by
 * `replicas.ts`.
 */
export class Room {
  readonly nid: number;
  readonly roomId: string;
  readonly version: RoomVersion;
  /** No longer the room's live state: whoever holds it must ask for the room again. */
  dropped = false;
  extremities: readonly string[];
  depth: number;
  /** State after the extremities, resolved. */
  state: Snapshot;
  published: boolean;
  /** Position of the newest change of anybody's membership. */
  lastMembershipChange = 0;
  /** Position of the newest event that changed other state than what it sets itself, by way of state resolution. */
  lastStateJump: number;
  /** Position of the newest change that this object has: all changes of the room up to there are in it. */
  upTo: number;
  /** Position at which the state last became complete, after a join that left the members out. */
  completeSince: number;
  readonly timeline: TimelineTail;
  readonly #ourServer: string;
  readonly #commits: Commits;
  readonly #members = new Map<string, Member>();
  readonly #joinedHere = new Set<string>();
  readonly #servers = new Map<string, number>();
  #otherServers: readonly string[] | undefined;
  readonly #counts = new Map<string, number>();
  #partial: PartialState | undefined;

  constructor(
    row: {
      nid: number;
      roomId: string;
      extremities: readonly string[];
      depth: number;
      published: boolean;
      completeSince?: number | null;
      upTo: number;
    },
    version: RoomVersion,
    state: Snapshot,
    members: Iterable<[userId: string, member: Member]>,
    timeline: TimelineTail,
    ourServer: string,
    commits: Commits,
  ) {
    this.nid = row.nid;
    this.roomId = row.roomId;
    this.version = version;
    this.extremities = row.extremities;
    this.depth = row.depth;
    this.published = row.published;
    this.state = state;
    this.timeline = timeline;
    // What was before the room was read is not known any more.
    this.lastStateJump = timeline.newest?.pos ?? timeline.from;
    this.completeSince = row.completeSince ?? Number.NEGATIVE_INFINITY;
    this.upTo = row.upTo;
    this.#ourServer = ourServer;
    this.#commits = commits;
    for (const [userId, member] of members) this.setMember(userId, member);
  }

  /** Events appended by this process that are not committed and announced yet. */
  get uncommitted(): number {
    return this.#commits.of(this.roomId);
  }

  set uncommitted(count: number) {
    this.#commits.set(this.roomId, count);
  }

  /** Whether this server takes part in the room: it has joined members, and so the room's state. */
  get isResident(): boolean {
    return this.extremities.length > 0 && this.#joinedHere.size > 0;
  }

  member(userId: string): Member | undefined {
    return this.#members.get(userId);
  }

  membership(userId: string): string | undefined {
    return this.#members.get(userId)?.membership;
  }

  isJoined(userId: string): boolean {
    return this.#members.get(userId)?.membership === 'join';
  }

  members(): IterableIterator<[string, Member]> {
    return this.#members.entries();
  }

  /** Users with any membership, those who left too. */
  get memberCount(): number {
    return this.#members.size;
  }

  /** Users with that membership: a count kept up to date. */
  count(membership: string): number {
    return this.#counts.get(membership) ?? 0;
  }

  /** Local users who are joined. */
  get joinedHere(): ReadonlySet<string> {
    return this.#joinedHere;
  }

  /** Servers, ours too, with how many joined members each has. */
  get servers(): ReadonlyMap<string, number> {
    return this.#servers;
  }

  /** The servers besides ours. The same array as long as they are the same; not to be changed. */
  get otherServers(): readonly string[] {
    this.#otherServers ??= [...this.#servers.keys()].filter((server) => server !== this.#ourServer);
    return this.#otherServers;
  }

  /** For `append.ts` only. `undefined` removes the member. */
  setMember(userId: string, member: Member | undefined): void {
    const before = this.#members.get(userId)?.membership;
    if (member) this.#members.set(userId, member);
    else this.#members.delete(userId);
    const after = member?.membership;
    if (member) this.lastMembershipChange = Math.max(this.lastMembershipChange, member.pos);
    if (before === after) return;
    if (before !== undefined) this.#counts.set(before, this.count(before) - 1);
    if (after !== undefined) this.#counts.set(after, this.count(after) + 1);
    if (before !== 'join' && after !== 'join') return;
    const server = serverNameOf(userId);
    this.#countServer(server, after === 'join' ? 1 : -1);
    if (server !== this.#ourServer) return;
    if (after === 'join') this.#joinedHere.add(userId);
    else this.#joinedHere.delete(userId);
  }

  /** Set while most members are not known: the servers said to be in the room count as if they were in it. */
  get partial(): PartialState | undefined {
    return this.#partial;
  }

  /** For `partial-state/` and `install-room.ts` only. */
  setPartial(partial: PartialState | undefined): void {
    for (const server of this.#partial?.servers ?? []) this.#countServer(server, -1);
    this.#partial = partial;
    for (const server of partial?.servers ?? []) this.#countServer(server, 1);
  }

  #countServer(server: string, change: 1 | -1): void {
    const before = this.#servers.get(server) ?? 0;
    const after = before + change;
    if (after > 0 !== before > 0) this.#otherServers = undefined;
    if (after > 0) this.#servers.set(server, after);
    else this.#servers.delete(server);
  }
}

/** The member's change as `room_members` and the live room keep it. */
export function memberFromEvent(event: StoredEvent, pos: number): Member {
  const { membership } = event.content as JsonObject;
  return {
    membership: typeof membership === 'string' ? membership : 'leave',
    eventId: event.eventId,
    sender: event.sender,
    pos,
  };
}
