import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { News } from './news-feed.ts';
import { PastMembers } from './past-members.ts';
import type { Appservice } from './registry.ts';
import type { RoomAliases } from './room-aliases.ts';

export interface InterestDeps {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly aliases: RoomAliases;
}

/**
 * What an application service is to hear of ("Registration"): events that its users are the target of, events in rooms
 * that its users are in, and events in rooms of its namespaces.
 */
export class Interest {
  readonly #service: Appservice;
  readonly #deps: InterestDeps;
  /** Whether a room has members of the service, as long as its members are the same. */
  readonly #known = new WeakMap<Room, { change: number; joined: number; any: boolean }>();

  constructor(service: Appservice, deps: InterestDeps) {
    this.#service = service;
    this.#deps = deps;
  }

  /** Whether the service is to hear of an event; memberships count as they were then. */
  async includes(news: News, past: PastMembers): Promise<boolean> {
    past.follow(news);
    const { pos, event, outOfBand } = news;
    const { type, sender, stateKey, roomId } = event;
    if (this.#service.isInterested(sender)) return true;
    if (type === 'm.room.member' && this.#service.isInterested(stateKey!)) return true;
    if (outOfBand) return false;
    if (this.#service.rooms.includes(roomId)) return true;
    const room = await this.#room(roomId);
    if (!room) return false;
    const isMember =
      room.lastMembershipChange <= pos ? this.hasMemberIn(room) : (await past.of(room, pos)).size > 0;
    return isMember || this.#hasAlias(roomId);
  }

  /** For consecutive events. */
  past(): PastMembers {
    return new PastMembers(this.#deps.rooms, this.#service);
  }

  /** Whether the service hears of everything in a room now. */
  async inRoom(roomId: string): Promise<boolean> {
    if (this.#service.rooms.includes(roomId)) return true;
    const room = await this.#room(roomId);
    if (!room) return false;
    return this.hasMemberIn(room) || this.#hasAlias(roomId);
  }

  /** Whether the user is the service's, or shares a room with it. */
  async inUser(userId: string): Promise<boolean> {
    if (this.#service.isInterested(userId)) return true;
    for (const roomId of await this.#deps.memberships.joined(userId))
      if (await this.inRoom(roomId)) return true;
    return false;
  }

  hasMemberIn(room: Room): boolean {
    const known = this.#known.get(room);
    const { lastMembershipChange: change, joinedHere } = room;
    if (known?.change === change && known.joined === joinedHere.size) return known.any;
    let any = false;
    for (const userId of joinedHere) {
      any = this.#service.isInterested(userId);
      if (any) break;
    }
    this.#known.set(room, { change, joined: joinedHere.size, any });
    return any;
  }

  #room(roomId: string): Room | undefined | Promise<Room | undefined> {
    const { rooms } = this.#deps;
    return rooms.peek(roomId) ?? rooms.get(roomId);
  }

  async #hasAlias(roomId: string): Promise<boolean> {
    const { aliases } = this.#service;
    if (aliases.isEmpty) return false;
    return (await this.#deps.aliases.of(roomId)).some((alias) => aliases.includes(alias));
  }
}
