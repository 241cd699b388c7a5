import { setTimeout as sleep } from 'node:timers/promises';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { News } from './news-feed.ts';
import type { Appservice } from './registry.ts';

/** Milliseconds. */
const COMMIT_WAIT_MS = 2;

/**
 * A service's users in rooms as they were, while it catches up: a room's members at the first event that is asked for,
 * and from there on as the events say.
 */
export class PastMembers {
  readonly #rooms: Rooms;
  readonly #service: Appservice;
  readonly #members = new Map<string, Set<string>>();

  constructor(rooms: Rooms, service: Appservice) {
    this.#rooms = rooms;
    this.#service = service;
  }

  /** To be called for each event in turn. */
  follow({ event: { type, roomId, stateKey, content }, outOfBand }: News): void {
    const members = this.#members.get(roomId);
    if (!members || outOfBand || type !== 'm.room.member' || !this.#service.isInterested(stateKey!)) return;
    if (content.membership === 'join') members.add(stateKey!);
    else members.delete(stateKey!);
  }

  /** Who was joined after the event at a position, the last that was followed. */
  async of(room: Room, pos: number): Promise<ReadonlySet<string>> {
    let members = this.#members.get(room.roomId);
    if (!members) {
      members = await this.#read(room, pos);
      this.#members.set(room.roomId, members);
    }
    return members;
  }

  /** Today's members, less what changed since. A live room is ahead of what is committed: that is waited for. */
  async #read(room: Room, pos: number): Promise<Set<string>> {
    const { db, serverName, stream } = this.#rooms.parts;
    const now = room.lastMembershipChange;
    const members = new Set([...room.joinedHere].filter((userId) => this.#service.isInterested(userId)));
    while (stream.current < now) await sleep(COMMIT_WAIT_MS);
    const changed = await db.query<{ userId: string; before: string | null }>(
      {
        name: 'appservice-past-members',
        text: `SELECT DISTINCT ON (e.state_key) e.state_key AS "userId", p.json AS before
               FROM events e LEFT JOIN events p ON p.event_id = e.replaces
               WHERE e.room = $1 AND e.pos > $2 AND e.pos <= $3 AND e.status = 0 AND NOT e.backfilled AND e.type = 'm.room.member'
                 AND substr(e.state_key, strpos(e.state_key, ':') + 1) = $4
               ORDER BY e.state_key, e.pos`,
      },
      [room.nid, pos, now, serverName],
    );
    for (const { userId, before } of changed) {
      if (!this.#service.isInterested(userId)) continue;
      if (before !== null && membershipIn(before) === 'join') members.add(userId);
      else members.delete(userId);
    }
    return members;
  }
}

function membershipIn(json: string): unknown {
  return (decodeJson(json) as { content: { membership?: unknown } }).content.membership;
}
