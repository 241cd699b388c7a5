import { notFound } from '@trellis/protocol/errors.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import { ServerView } from '../server-visibility.ts';
import { visibilityIn, visibleEvents } from '../visibility.ts';
import { Exploration, type ExploreParts } from './explore.ts';
import type { ThreadQuery } from './query.ts';
import type { ChildrenSummary } from './thread-store.ts';
import { type ThreadView, type Walked, walkThread } from './walk.ts';

export interface ThreadsParts extends ExploreParts {
  readonly rooms: Rooms;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

/** A part of a thread, and what is known of its events' children. */
export interface ThreadPart extends Walked {
  readonly room: Room;
  readonly summaries: ReadonlyMap<string, ChildrenSummary>;
}

type See = (events: readonly StoredEvent[]) => Promise<StoredEvent[]>;

/**
 * Threads as trees of any depth (MSC2836): events with `m.relationship`, within one room. What is missing here is
 * fetched from the room's servers and kept as outliers.
 */
export class Threads {
  readonly #parts: ThreadsParts;

  constructor(parts: ThreadsParts) {
    this.#parts = parts;
  }

  /**
   * @param roomId where to look for the event when it is not here
   * @throws M_NOT_FOUND when the user may not see the event
   */
  async forUser(
    userId: string,
    anchor: { readonly eventId: string; readonly roomId: string | undefined },
    query: ThreadQuery,
  ): Promise<ThreadPart> {
    const exploration = new Exploration(this.#parts, query);
    const { events } = this.#parts.rooms.parts;
    let event = await events.get(anchor.eventId);
    if (!event && anchor.roomId !== undefined) {
      const room = await this.#parts.rooms.get(anchor.roomId);
      if (room?.isJoined(userId)) await exploration.fetch(room, anchor.eventId);
      event = await events.get(anchor.eventId);
    }
    const room = event && (await this.#parts.rooms.get(event.roomId));
    if (!event || !room) throw notFound('Event not found');
    const ignored = await this.#parts.ignoredUsers(userId);
    const see: See = async (found) =>
      (await this.#visibleTo(userId, room, found)).filter(({ sender }) => !ignored.has(sender));
    const [visible] = await see([event]);
    if (!visible) throw notFound('Event not found');
    return this.#walk(room, visible, query, see, exploration);
  }

  /** For another server of the room: from what is here alone. */
  async forServer(server: string, room: Room, event: StoredEvent, query: ThreadQuery): Promise<ThreadPart> {
    const view = new ServerView(this.#parts.rooms, server);
    const see: See = async (found) => {
      const seen: StoredEvent[] = [];
      for (const each of found) if (each.status === 'accepted' && (await view.sees(each))) seen.push(each);
      return seen;
    };
    if ((await see([event])).length === 0) throw notFound('Event not found');
    return this.#walk(room, event, query, see);
  }

  async #walk(
    room: Room,
    anchor: StoredEvent,
    query: ThreadQuery,
    see: See,
    exploration?: Exploration,
  ): Promise<ThreadPart> {
    const { store } = this.#parts;
    const view: ThreadView = {
      parent: async (event) => {
        const parent = await store.parent(room, event.eventId);
        if (parent === undefined) return undefined;
        if (exploration && !(await this.#parts.rooms.parts.events.get(parent)))
          await exploration.fetch(room, parent, serverNameOf(event.sender));
        return (await this.#ofRoom(room, [parent], see))[0];
      },
      children: async (event, limit) => {
        const { eventId } = event;
        await exploration?.children(room, event);
        const ids = await store.children(room, eventId, { recentFirst: query.recent_first, limit });
        return this.#ofRoom(room, ids, see);
      },
    };
    const walked = await walkThread(anchor, query, view);
    const ids = walked.events.map(({ eventId }) => eventId);
    const [known, claimed] = await Promise.all([store.summaries(room, ids), store.unexplored(room, ids)]);
    return { ...walked, room, summaries: new Map([...known, ...claimed]) };
  }

  async #ofRoom(room: Room, ids: readonly string[], see: See): Promise<StoredEvent[]> {
    const found = await this.#parts.rooms.parts.events.getMany(ids);
    return see(
      ids.flatMap((id) => {
        const event = found.get(id);
        return event?.roomId === room.roomId ? event : [];
      }),
    );
  }

  /**
   * Events that were fetched for a thread have no place in the room, and so no state that says who may see them. They
   * come whole from servers that found this one entitled to them; here the room's setting of today decides.
   */
  async #visibleTo(userId: string, room: Room, events: readonly StoredEvent[]): Promise<StoredEvent[]> {
    const { rooms } = this.#parts;
    const accepted = events.filter(({ status }) => status === 'accepted');
    const placed = accepted.filter(({ pos }) => pos !== undefined);
    const visible = placed.length > 0 ? await visibleEvents(rooms, room, userId, placed) : [];
    const seen = new Map(visible.map((event) => [event.eventId, event]));
    if (placed.length < accepted.length) {
      const setting = await visibilityIn(rooms, room.state);
      const open = setting === 'world_readable' || (setting === 'shared' && room.isJoined(userId));
      if (open) for (const event of accepted) if (event.pos === undefined) seen.set(event.eventId, event);
    }
    return accepted.flatMap(({ eventId }) => seen.get(eventId) ?? []);
  }
}
