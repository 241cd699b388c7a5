import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { announce } from './announce.ts';
import type { EventChange, Rooms } from './rooms.ts';

/** A user's membership in one room. */
export interface UserMembership {
  readonly roomId: string;
  readonly membership: string;
  readonly eventId: string;
  readonly sender: string;
  /** Position in the stream of events at which it became this. */
  readonly pos: number;
  readonly forgotten: boolean;
}

/**
 * Who is in which rooms, seen from the user: read from `room_members` when first asked, kept up to date by the
 * stream of events. Local users' and, for the sake of shared rooms, remote users'.
 */
export class Memberships {
  readonly #db: Queryable;
  readonly #rooms: Rooms;
  readonly #users = new RecentlyUsed<string, Map<string, UserMembership>>(50_000);
  readonly #loading = new Map<string, Promise<Map<string, UserMembership>>>();
  readonly #changedWhileLoading = new Set<string>();

  constructor(db: Queryable, rooms: Rooms) {
    this.#db = db;
    this.#rooms = rooms;
    const { cluster, stream } = rooms.parts;
    stream.subscribe(
      (pos, change) => this.#follow(pos, change),
      () => this.#forgetAll(),
    );
    cluster.onAnnounce('memberships', (userId: string) => this.#forgetUser(userId));
  }

  /** The user's rooms by id, with every membership there is, forgotten ones too. Not to be changed. */
  async of(userId: string): Promise<ReadonlyMap<string, UserMembership>> {
    const known = this.#users.get(userId);
    if (known) return known;
    let loading = this.#loading.get(userId);
    if (!loading) {
      loading = this.#load(userId).finally(() => this.#loading.delete(userId));
      this.#loading.set(userId, loading);
    }
    return loading;
  }

  /** What `of` gives, when it is in memory. */
  known(userId: string): ReadonlyMap<string, UserMembership> | undefined {
    return this.#users.get(userId);
  }

  /** Rooms that the user is joined to. */
  async joined(userId: string): Promise<string[]> {
    const rooms = await this.of(userId);
    return [...rooms.values()].filter(({ membership }) => membership === 'join').map(({ roomId }) => roomId);
  }

  async isJoined(userId: string, roomId: string): Promise<boolean> {
    const room = this.#rooms.peek(roomId);
    if (room) return room.isJoined(userId);
    return (await this.of(userId)).get(roomId)?.membership === 'join';
  }

  /** Whether two users are joined to the same room. */
  async shareRoom(a: string, b: string): Promise<boolean> {
    if (a === b) return true;
    const [ofA, ofB] = await Promise.all([this.of(a), this.of(b)]);
    for (const { roomId, membership } of ofA.values())
      if (membership === 'join' && ofB.get(roomId)?.membership === 'join') return true;
    return false;
  }

  /** All users who share a joined room with the user, from the live rooms; the user is among them. */
  async usersSharingRoomWith(userId: string): Promise<Set<string>> {
    const users = new Set([userId]);
    for (const roomId of await this.joined(userId)) {
      const room = await this.#rooms.get(roomId);
      for (const [member, { membership }] of room?.members() ?? [])
        if (membership === 'join') users.add(member);
    }
    return users;
  }

  /** Servers that share a joined room with the user. */
  async serversSharingRoomWith(userId: string): Promise<Set<string>> {
    const servers = new Set<string>();
    for (const roomId of await this.joined(userId))
      for (const server of (await this.#rooms.get(roomId))?.servers.keys() ?? []) servers.add(server);
    return servers;
  }

  /** Local users who share a joined room with the user, the user included. */
  async localUsersSharingRoomWith(userId: string): Promise<Set<string>> {
    const users = new Set([userId]);
    const { shared } = this.#rooms.parts.cluster;
    for (const roomId of await this.joined(userId)) {
      // What another process appends to need not be live here.
      const room = this.#rooms.peek(roomId) ?? (shared ? await this.#rooms.get(roomId) : undefined);
      for (const other of room?.joinedHere ?? []) users.add(other);
    }
    return users;
  }

  /** The stripped state that came with an invite or a knock, as JSON text of an array. */
  async strippedState(userId: string, roomId: string): Promise<string | undefined> {
    const [row] = await this.#db.query<{ stripped: string | null }>(
      {
        name: 'member-stripped',
        text: `SELECT m.stripped_state AS stripped FROM room_members m JOIN rooms r ON r.nid = m.room
               WHERE m.user_id = $1 AND r.room_id = $2`,
      },
      [userId, roomId],
    );
    return row?.stripped ?? undefined;
  }

  /** The user no longer wants to know of a room that they left (spec: "Leaving rooms"). */
  async forget(userId: string, roomId: string): Promise<void> {
    await this.#db.query(
      `UPDATE room_members m SET forgotten = true FROM rooms r
       WHERE r.nid = m.room AND m.user_id = $1 AND r.room_id = $2 AND m.membership IN ('leave', 'ban')`,
      [userId, roomId],
    );
    // Not set here: the user may have joined again since, which was told already.
    await announce(this.#rooms.parts.cluster, 'memberships', userId);
  }

  #forgetUser(userId: string): void {
    if (this.#loading.has(userId)) this.#changedWhileLoading.add(userId);
    this.#users.delete(userId);
  }

  #forgetAll(): void {
    for (const userId of this.#loading.keys()) this.#changedWhileLoading.add(userId);
    this.#users.clear();
  }

  #follow(pos: number, { roomId, event, memberships }: EventChange): void {
    const { shared } = this.#rooms.parts.cluster;
    const room = this.#rooms.peek(roomId);
    for (const { userId, after } of memberships) {
      if (this.#loading.has(userId)) this.#changedWhileLoading.add(userId);
      const rooms = this.#users.get(userId);
      if (!rooms) continue;
      const member = room?.member(userId);
      // Where the room is not live the change does not say all: since when it is so, by which event.
      if (shared && member?.membership !== after) this.#users.delete(userId);
      else if (after === undefined) rooms.delete(roomId);
      else if (member) rooms.set(roomId, { roomId, ...member, forgotten: false });
      else
        rooms.set(roomId, {
          roomId,
          membership: after,
          eventId: event.eventId,
          sender: event.sender,
          pos,
          forgotten: false,
        });
    }
  }

  async #load(userId: string): Promise<Map<string, UserMembership>> {
    for (;;) {
      this.#changedWhileLoading.delete(userId);
      const rows = await this.#db.query<UserMembership>(
        {
          name: 'member-rooms',
          text: `SELECT r.room_id AS "roomId", m.membership, m.event_id AS "eventId", m.sender, m.pos, m.forgotten
                 FROM room_members m JOIN rooms r ON r.nid = m.room WHERE m.user_id = $1`,
        },
        [userId],
      );
      // What was announced meanwhile may or may not be in the answer: ask again.
      if (this.#changedWhileLoading.has(userId)) continue;
      const rooms = new Map<string, UserMembership>(rows.map((row) => [row.roomId, row]));
      this.#users.set(userId, rooms);
      return rooms;
    }
  }
}
