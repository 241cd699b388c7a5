import type { PushOutcome } from '@trellis/protocol/push-rules/index.ts';
import type { Evaluate, PushEvaluation } from '@trellis/rooms/push-evaluation.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { threadOf } from '@trellis/rooms/thread-of.ts';
import type { ReadPositions } from '@trellis/rooms/unread.ts';
import { readPosition } from '@trellis/rooms/unread-counter.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** An event that a user is to be told of. */
export interface PushNotification {
  readonly room: Room;
  readonly event: StoredEvent;
  readonly outcome: PushOutcome;
}

export interface CandidatesDeps {
  readonly rooms: Rooms;
  readonly evaluation: PushEvaluation;
  readonly reads: ReadPositions;
  /** The user does not want to hear of invites of that user. */
  readonly hidesInvite: (userId: string, sender: string) => boolean | Promise<boolean>;
}

/** Positions in rooms after which something new may be. */
export type RoomNews = ReadonlyMap<string, number>;

/** Events of one room looked at for one delivery, newest first: who is further behind than that is not told of all. */
const MAX_EVENTS = 500;
/** Notifications of one delivery. */
const MAX_NOTIFICATIONS = 100;

/** Finds what users are to be told of: by their push rules, and not read yet. */
export class Candidates {
  readonly #deps: CandidatesDeps;

  constructor(deps: CandidatesDeps) {
    this.#deps = deps;
  }

  /** Of the events up to `to`, oldest first; the newest ones when there are too many. */
  async find(userId: string, news: RoomNews, to: number): Promise<PushNotification[]> {
    const found: PushNotification[] = [];
    for (const [roomId, after] of news) {
      const room = await this.#deps.rooms.get(roomId);
      if (!room) continue;
      const membership = room.membership(userId);
      if (membership === 'invite') await this.#invite(room, userId, after, to, found);
      else if (membership === 'join') await this.#messages(room, userId, after, to, found);
    }
    return found.sort((a, b) => a.event.pos! - b.event.pos!).slice(-MAX_NOTIFICATIONS);
  }

  async #invite(
    room: Room,
    userId: string,
    after: number,
    to: number,
    found: PushNotification[],
  ): Promise<void> {
    const { rooms, evaluation, hidesInvite } = this.#deps;
    const { eventId, pos, sender } = room.member(userId)!;
    if (pos <= after || pos > to || (await hidesInvite(userId, sender))) return;
    const event = await rooms.parts.events.get(eventId);
    if (event?.pos === undefined) return;
    const outcome = (await evaluation.forUser(room, userId))(event);
    if (outcome.notify) found.push({ room, event, outcome });
  }

  async #messages(
    room: Room,
    userId: string,
    after: number,
    to: number,
    found: PushNotification[],
  ): Promise<void> {
    const { rooms, evaluation, reads } = this.#deps;
    const from = Math.max(after, room.member(userId)!.pos);
    const events = await this.#eventsBetween(room, from, to);
    if (events.length === 0) return;
    const evaluate: Evaluate = await evaluation.forUser(room, userId);
    const read = await reads.readUpTo(userId, room.roomId);
    // Whoever sends an event has read up to it (spec: push, "Receiving notifications").
    const answered = new Set<string>();
    for (const event of events.toReversed()) {
      if (event.sender === userId) answered.add(await threadOf(rooms.parts.events, event));
      if (event.sender === userId || event.backfilled || event.redactedBy) continue;
      const outcome = evaluate(event);
      if (!outcome.notify) continue;
      const thread = await threadOf(rooms.parts.events, event);
      if (!answered.has(thread) && event.pos! > readPosition(read, thread))
        found.push({ room, event, outcome });
    }
  }

  async #eventsBetween(room: Room, after: number, to: number): Promise<readonly StoredEvent[]> {
    if (after >= to) return [];
    const recent = room.timeline.between(after, to, MAX_EVENTS);
    if (recent) return recent.events;
    const { events } = this.#deps.rooms.parts;
    const range = { after, before: to + 1, direction: 'backward', limit: MAX_EVENTS } as const;
    return (await events.timeline(room.nid, range)).reverse();
  }
}
