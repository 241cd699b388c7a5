import { MatrixError } from '@trellis/protocol/errors.ts';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { append } from './append.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { buildDraft, requireAllowed } from './send.ts';

/** With more ends than that, a room's state is resolved from too many states at each event. */
const MAX_ENDS = 10;
/** With more than that, no time is lost: forks come faster than they are joined. */
const URGENT = 20;
/** Between two such events of a room otherwise, in milliseconds. */
const PAUSE = 60_000;
/** A room in which nobody here may send such an event is left alone for so long, in milliseconds. */
const REST = 60 * 60_000;
/** Predecessors that an event may name (spec: "PDUs"). */
const MERGED_AT_ONCE = 20;
const MAX_EVENTS = 10;
const MAX_SENDERS = 20;

/**
 * Keeps the ends of rooms' graphs few. Events of local users join them; where none are sent, and others' forks pile
 * up, this server joins them by an event of its own. Synapse does the same, with the same type: clients are not
 * shown it, and it goes to other servers when they ask for what an event of ours builds on.
 */
export class MergeEnds {
  readonly #rooms: Rooms;
  readonly #log: { warn(data: object, message: string): void };
  readonly #clock: () => number;
  readonly #running = new Set<string>();
  readonly #notBefore = new RecentlyUsed<string, { at: number; forbidden: boolean }>(10_000);

  constructor(
    rooms: Rooms,
    log: { warn(data: object, message: string): void },
    clock: () => number = Date.now,
  ) {
    this.#rooms = rooms;
    this.#log = log;
    this.#clock = clock;
  }

  /** Looks at a room that an event of others has just come to, in the one process whose the room is. */
  note(roomId: string): Promise<void> | undefined {
    if (!this.#rooms.parts.cluster.owns('room', roomId)) return undefined;
    const room = this.#rooms.peek(roomId);
    const ends = room?.extremities.length ?? 0;
    if (!room || ends <= MAX_ENDS || this.#running.has(roomId)) return undefined;
    const wait = this.#notBefore.get(roomId);
    if (wait && wait.at > this.#clock() && (wait.forbidden || ends <= URGENT)) return undefined;
    this.#running.add(roomId);
    return this.#merge(roomId)
      .catch((err: unknown) => this.#log.warn({ err, roomId }, 'joining the ends of a room failed'))
      .finally(() => this.#running.delete(roomId));
  }

  async #merge(roomId: string): Promise<void> {
    let merged = true;
    for (let i = 0; i < MAX_EVENTS && merged; i++) merged = await this.#mergeOnce(roomId);
    const forbidden = (this.#rooms.peek(roomId)?.extremities.length ?? 0) > MAX_ENDS;
    this.#notBefore.set(roomId, { at: this.#clock() + (forbidden ? REST : PAUSE), forbidden });
  }

  async #mergeOnce(roomId: string): Promise<boolean> {
    const appended = await this.#rooms.exclusive(roomId, async (room) => {
      if (!room.isResident || room.extremities.length <= MAX_ENDS) return undefined;
      const event = await this.#eventOfSomebody(room);
      return event && this.#append(room, event);
    });
    await appended?.committed;
    return appended !== undefined;
  }

  /** By the first local member who may send it. */
  async #eventOfSomebody(room: Room): Promise<RoomEvent | undefined> {
    for (const sender of [...room.joinedHere].slice(0, MAX_SENDERS)) {
      const draft = { type: 'org.matrix.dummy_event', sender, content: {} };
      const event = await buildDraft(this.#rooms, room, draft, MERGED_AT_ONCE);
      try {
        await requireAllowed(this.#rooms, room, event);
        return (await this.#rooms.parts.policies?.signed(this.#rooms, room, event)) ?? event;
      } catch (error) {
        if (!(error instanceof MatrixError)) throw error;
      }
    }
    return undefined;
  }

  /** As an end of the graph that nobody hears of: what readers see is what is accepted. */
  #append(room: Room, event: RoomEvent) {
    return append(this.#rooms, room, {
      event,
      status: 'soft-failed',
      stateBefore: room.state,
      after: {
        extremities: [event.eventId, ...room.extremities.slice(MERGED_AT_ONCE)],
        state: room.state,
        changes: new Map(),
      },
    });
  }
}
