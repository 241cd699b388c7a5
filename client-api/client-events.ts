import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { membershipsAt } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyReply } from 'fastify';
import type { AggregateRelations } from './aggregations.ts';
import { eventJson } from './event-json.ts';

export interface EventReader {
  readonly userId: string;
  readonly deviceId: string | undefined;
}

/** Writes events of a room out for a user, with all that `unsigned` holds. */
export class ClientEvents {
  readonly #rooms: Rooms;
  readonly #aggregate: AggregateRelations;

  constructor(rooms: Rooms, aggregate: AggregateRelations) {
    this.#rooms = rooms;
    this.#aggregate = aggregate;
  }

  /** JSON texts, in the order of the events. */
  async json(
    room: Room,
    events: readonly StoredEvent[],
    { userId, deviceId }: EventReader,
  ): Promise<string[]> {
    const [membership, relations] = await Promise.all([
      membershipsAt(this.#rooms, room, userId, events),
      this.#aggregate(events, userId),
    ]);
    const viewer = { userId, deviceId, membership, relations, now: Date.now() };
    return events.map((event) => eventJson(event, viewer));
  }

  async list(room: Room, events: readonly StoredEvent[], reader: EventReader): Promise<string> {
    return `[${(await this.json(room, events, reader)).join(',')}]`;
  }
}

/** Answers with JSON that is text already. */
export function sendJson(reply: FastifyReply, json: string): FastifyReply {
  reply.header('content-type', 'application/json');
  return reply.send(Buffer.from(json));
}
