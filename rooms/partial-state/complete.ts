import { splitStateKey } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { EventWrite } from '@trellis/storage/event-writer.ts';
import { STATUS_CODES } from '@trellis/storage/events.ts';
import { type MemberRow, replaceStates, storePartialRoom } from '@trellis/storage/partial-rooms.ts';
import type { Snapshot, StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { StoredEvent } from '@trellis/storage/stored-event.ts';
import { conclude, membershipRow, relationOf } from '../append.ts';
import { applyRedaction } from '../redactions.ts';
import { type Member, memberFromEvent, type Room } from '../room.ts';
import type { EventChange, Rooms } from '../rooms.ts';
import { type StatesAt, settled } from '../state-at.ts';
import { storeMembers } from './members.ts';
import type { PartialState } from './partial-rooms.ts';
import { type Replay, type Replayed, replay } from './replay.ts';

/** Events that a room is shown with at once afterwards. */
const TAIL = 30;

export interface FullState {
  /** The state before each of the joins that left members out. */
  readonly before: ReadonlyMap<string, Snapshot>;
  /** By event id: members who have just come. */
  readonly members: ReadonlyMap<string, MemberRow>;
}

/**
 * Puts the full state in the place of the partial one, as soon as it is here: with the state before the join, all that
 * has happened since is worked out anew, stored as one, and announced as the change of memberships that it is.
 *
 * @returns false when the room is not what it was when the state was asked for
 */
export async function completeState(
  rooms: Rooms,
  states: StatesAt,
  roomId: string,
  partial: PartialState,
  { before, members: come }: FullState,
): Promise<boolean> {
  const { events, snapshots } = rooms.parts;
  const first = before.get(partial.joins[0]!)!;
  const room = await rooms.require(roomId);
  const join = (await events.get(partial.joins[0]!))!;
  // What is large goes first, and holds nobody up.
  const storing = storeAll(snapshots, before.values());
  storing.catch(() => {});
  const members = await storeMembers(rooms, room, { state: first, pos: join.pos!, come });
  await storing;
  return rooms.exclusive(roomId, async (current) => {
    if (current.partial?.joins.join() !== partial.joins.join()) return false;
    await settled(rooms, current);
    const outcome = await replay(rooms, states, current, before);
    for (const id of partial.joins)
      if (outcome.events.get(id)?.status !== 'accepted') throw new Error(`the state does not allow ${id}`);
    await new Completion(rooms, current, partial, outcome, members, join).run();
    return true;
  });
}

async function storeAll(store: StateSnapshots, snapshots: Iterable<Snapshot>): Promise<void> {
  for (const snapshot of snapshots) await store.store(snapshot);
}

class Completion {
  readonly #rooms: Rooms;
  readonly #room: Room;
  readonly #partial: PartialState;
  readonly #replay: Replay;
  /** Before the join. */
  readonly #members: ReadonlyMap<string, MemberRow>;
  readonly #join: StoredEvent;

  constructor(
    rooms: Rooms,
    room: Room,
    partial: PartialState,
    replayed: Replay,
    members: ReadonlyMap<string, MemberRow>,
    join: StoredEvent,
  ) {
    this.#rooms = rooms;
    this.#room = room;
    this.#partial = partial;
    this.#replay = replayed;
    this.#members = members;
    this.#join = join;
  }

  async run(): Promise<void> {
    const { events, writer } = this.#rooms.parts;
    const { state, extremities } = this.#replay;
    const room = this.#room;
    const changed = [...this.#replay.events.values()].filter(isChanged);
    const accepted = changed.filter(
      ({ event, status }) => status === 'accepted' && event.status !== 'accepted',
    );
    const pos = await this.#rooms.nextPosition(room.roomId);
    try {
      const members = await this.#membersNow(pos);
      const gone = [...room.members()].map(([userId]) => userId).filter((userId) => !members.has(userId));
      const memberships = [...members]
        .filter(([userId, { eventId }]) => this.#isToBeStored(userId, eventId))
        .map(([userId, member]) => membershipRow(userId, member));
      await writer.write([
        {
          roomNid: room.nid,
          event: this.#join,
          snapshots: [...changed.flatMap((each) => [each.stateBefore, each.roomStateBefore]), state],
          room: { extremities, state: state.id, depth: room.depth },
          memberships,
          also: (tx) => this.#store(tx, changed, gone, pos),
        },
        ...accepted.map((replayed) => this.#acceptedNow(replayed)),
      ]);
      for (const { event } of changed) events.forget(event.eventId);
      const tail = await events.timeline(room.nid, { direction: 'backward', limit: TAIL });
      const change = this.#switch(members, gone, pos);
      room.timeline.reset(Math.max(room.timeline.from, (tail.at(-1)?.pos ?? pos) - 1), tail.reverse());
      this.#rooms.partial.end(room.roomId);
      await this.#rooms.changed(room.roomId, { eventIds: changed.map(({ event }) => event.eventId) });
      await conclude(this.#rooms, pos, [change]);
    } catch (error) {
      this.#rooms.drop(room);
      await conclude(this.#rooms, pos, []);
      throw error;
    }
  }

  /** The members by the full state; who is known already keeps the position. */
  async #membersNow(pos: number): Promise<Map<string, Member>> {
    const { events } = this.#rooms.parts;
    const members = new Map<string, Member>();
    const others = new Map<string, string>();
    for (const [key, { eventId }] of this.#replay.state.entries()) {
      const [type, userId] = splitStateKey(key);
      if (type !== 'm.room.member') continue;
      const row = this.#members.get(userId);
      const known = this.#room.member(userId);
      if (known?.eventId === eventId) members.set(userId, known);
      else if (row?.eventId === eventId)
        members.set(userId, {
          membership: row.membership,
          eventId,
          sender: row.sender,
          pos: this.#join.pos!,
        });
      else others.set(userId, eventId);
    }
    const found = await events.getMany(others.values());
    for (const [userId, eventId] of others) {
      const member = memberFromEvent(found.get(eventId)!, pos);
      const known = this.#room.member(userId);
      members.set(userId, known?.membership === member.membership ? { ...member, pos: known.pos } : member);
    }
    return members;
  }

  /** Those who nothing was known of have been stored already. */
  #isToBeStored(userId: string, eventId: string): boolean {
    const known = this.#room.member(userId);
    if (known) return known.eventId !== eventId;
    return this.#members.get(userId)?.eventId !== eventId;
  }

  async #store(
    tx: Queryable,
    changed: readonly Replayed[],
    gone: readonly string[],
    pos: number,
  ): Promise<void> {
    const { nid } = this.#room;
    await replaceStates(
      tx,
      changed.map(({ event, stateBefore, roomStateBefore, status }) => ({
        nid: event.nid,
        stateBefore: stateBefore.id,
        roomStateBefore: roomStateBefore.id,
        status: STATUS_CODES[status],
      })),
    );
    const refused = changed.filter(({ status }) => status === 'rejected').map(({ event }) => event.eventId);
    if (refused.length > 0) await tx.query('DELETE FROM relations WHERE event_id = ANY($1)', [refused]);
    if (gone.length > 0)
      await tx.query('DELETE FROM room_members WHERE room = $1 AND user_id = ANY($2)', [nid, gone]);
    await tx.query('UPDATE rooms SET complete_since = $2 WHERE nid = $1', [nid, pos]);
    await storePartialRoom(tx, nid, undefined);
  }

  /** What comes with an event that was refused before, besides its place. */
  #acceptedNow({ event, stateBefore }: Replayed): EventWrite {
    const { nid, pos } = event;
    const accepted = new StoredEvent(event, { nid, pos, status: 'accepted', stateBefore: stateBefore.id });
    const redaction = applyRedaction(this.#rooms, this.#room, accepted, stateBefore);
    return {
      roomNid: this.#room.nid,
      event: accepted,
      snapshots: [],
      memberships: [],
      relation: relationOf(accepted),
      also: redaction && ((tx) => redaction.store(tx)),
    };
  }

  /** In one moment, the live room is what the database says. */
  #switch(members: ReadonlyMap<string, Member>, gone: readonly string[], pos: number): EventChange {
    const room = this.#room;
    const { state, extremities } = this.#replay;
    const serversBefore = room.otherServers;
    const memberships: Array<EventChange['memberships'][number]> = [];
    const set = (userId: string, member: Member | undefined) => {
      const before = room.membership(userId);
      room.setMember(userId, member);
      if (before !== member?.membership) memberships.push({ userId, before, after: member?.membership });
    };
    for (const [userId, member] of members) set(userId, member);
    for (const userId of gone) set(userId, undefined);
    const { deviceListsPos } = this.#partial;
    const missed = this.#missed();
    room.setPartial(undefined);
    room.state = state;
    room.extremities = extremities;
    room.completeSince = pos;
    room.lastStateJump = pos;
    room.lastMembershipChange = Math.max(room.lastMembershipChange, pos);
    return {
      roomId: room.roomId,
      event: this.#join,
      outOfBand: false,
      passedOnByOthers: true,
      servers: { before: serversBefore, after: room.otherServers },
      memberships,
      resynced: { missed, deviceListsPos },
    };
  }

  /** Servers that had joined members at any time since the join, besides those said to have. */
  #missed(): string[] {
    const servers = new Set<string>();
    for (const [userId, { membership }] of this.#members)
      if (membership === 'join') servers.add(serverNameOf(userId));
    for (const { event, status } of this.#replay.events.values())
      if (event.type === 'm.room.member' && status === 'accepted' && event.content.membership === 'join')
        servers.add(serverNameOf(event.stateKey!));
    for (const server of this.#partial.servers) servers.delete(server);
    servers.delete(this.#rooms.parts.serverName);
    return [...servers];
  }
}

function isChanged({ event, status, stateBefore }: Replayed): boolean {
  return event.status !== status || event.stateBefore !== stateBefore.id;
}
