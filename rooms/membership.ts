import { forbidden, invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Memberships } from './memberships.ts';
import { joinFromHere } from './resident-join.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { appendDraft } from './send.ts';

/** Membership changes that need another server. Implemented by `remote-membership.ts`. */
export interface RemoteMembership {
  /** Joins by way of one of the servers, tried in order. */
  join(roomId: string, userId: string, servers: readonly string[], content: JsonObject): Promise<void>;
  /** Leaves, refuses an invite or takes back a knock by way of a server of the room; at least here if none answers. */
  leave(roomId: string, userId: string, content: JsonObject): Promise<void>;
  knock(roomId: string, userId: string, servers: readonly string[], content: JsonObject): Promise<void>;
  /** Has a remote user's invite signed by their server, and appends it. */
  invite(roomId: string, sender: string, target: string, content: JsonObject): Promise<StoredEvent>;
}

export interface Profile {
  readonly displayname?: string | null;
  readonly avatar_url?: string | null;
}

export interface MembershipParts {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly remote: RemoteMembership;
  /** Profile of a local user, for their member events. */
  readonly profile: (userId: string) => Promise<Profile>;
}

/** Joins, leaves, invites, kicks, bans and knocks of local users. Each throws M_FORBIDDEN where the rules refuse. */
export class Membership {
  readonly #parts: MembershipParts;

  constructor(parts: MembershipParts) {
    this.#parts = parts;
  }

  /**
   * Joins a room that this server is in, or by way of others.
   *
   * @param servers where to try, besides the servers known from an invite or the room id
   */
  async join(
    roomId: string,
    userId: string,
    servers: readonly string[],
    extra: JsonObject = {},
  ): Promise<void> {
    const { rooms, remote } = this.#parts;
    const content: JsonObject = { ...(await this.#memberContent(userId)), ...extra, membership: 'join' };
    const room = await rooms.get(roomId);
    const candidates = await this.#candidates(room, roomId, userId, servers);
    if (!room?.isResident) {
      if (candidates.length === 0) throw notFound('No known servers are in that room');
      return remote.join(roomId, userId, candidates, content);
    }
    if (
      room.isJoined(userId) &&
      Object.keys(extra).length === 0 &&
      (await this.#sameProfile(room, userId, content))
    )
      return;
    if (await joinFromHere(rooms, roomId, userId, content)) return;
    await remote.join(roomId, userId, candidates, content);
  }

  async leave(roomId: string, userId: string, extra: JsonObject = {}): Promise<void> {
    const { rooms, remote } = this.#parts;
    const room = await rooms.get(roomId);
    const membership = room?.membership(userId);
    if (!room || membership === undefined) throw notFound('You are not in that room');
    if (membership === 'leave') return;
    const content = { ...extra, membership: 'leave' };
    if (!room.isResident) return remote.leave(roomId, userId, content);
    await this.#append(roomId, userId, userId, content);
  }

  async invite(roomId: string, sender: string, target: string, extra: JsonObject = {}): Promise<void> {
    const { rooms, remote } = this.#parts;
    if (!parseUserId(target)) throw invalidParam('That is not a user id');
    const room = await this.#resident(roomId, sender);
    if (room.isJoined(target)) throw forbidden('The user is in the room already');
    const isLocal = serverNameOf(target) === rooms.parts.serverName;
    const content = { ...(isLocal ? await this.#memberContent(target) : {}), ...extra, membership: 'invite' };
    if (isLocal) await this.#append(roomId, sender, target, content);
    else await remote.invite(roomId, sender, target, content);
  }

  async kick(roomId: string, sender: string, target: string, extra: JsonObject = {}): Promise<void> {
    const room = await this.#resident(roomId, sender);
    const membership = room.membership(target);
    if (membership !== 'join' && membership !== 'invite' && membership !== 'knock')
      throw forbidden('The user is not in the room');
    await this.#append(roomId, sender, target, { ...extra, membership: 'leave' });
  }

  async ban(roomId: string, sender: string, target: string, extra: JsonObject = {}): Promise<void> {
    if (!parseUserId(target)) throw invalidParam('That is not a user id');
    await this.#resident(roomId, sender);
    await this.#append(roomId, sender, target, { ...extra, membership: 'ban' });
  }

  async unban(roomId: string, sender: string, target: string, extra: JsonObject = {}): Promise<void> {
    const room = await this.#resident(roomId, sender);
    if (room.membership(target) !== 'ban') throw forbidden('The user is not banned');
    await this.#append(roomId, sender, target, { ...extra, membership: 'leave' });
  }

  async knock(
    roomId: string,
    userId: string,
    servers: readonly string[],
    extra: JsonObject = {},
  ): Promise<void> {
    const { rooms, remote } = this.#parts;
    const content = { ...(await this.#memberContent(userId)), ...extra, membership: 'knock' };
    const room = await rooms.get(roomId);
    if (room?.isResident) {
      if (!room.version.knocking) throw forbidden('This room version knows no knocking');
      return this.#append(roomId, userId, userId, content);
    }
    const candidates = await this.#candidates(room, roomId, userId, servers);
    if (candidates.length === 0) throw notFound('No known servers are in that room');
    await remote.knock(roomId, userId, candidates, content);
  }

  /** A local user's new name or avatar, sent to the rooms that they are in. Failures of single rooms don't stop it. */
  async profileChanged(userId: string): Promise<void> {
    const { rooms, memberships } = this.#parts;
    const profile = await this.#memberContent(userId);
    for (const roomId of await memberships.joined(userId)) {
      try {
        const { committed } = await rooms.exclusive(roomId, async (room) => {
          const ref = room.state.get('m.room.member', userId);
          const current = ref && (await rooms.parts.events.get(ref.eventId));
          const { displayname: _name, avatar_url: _avatar, ...rest } = current?.content ?? {};
          // The authoriser's signature was for the join; a change of profile must not claim it again.
          delete rest.join_authorised_via_users_server;
          const content = { ...rest, ...profile, membership: 'join' };
          return appendDraft(rooms, room, {
            type: 'm.room.member',
            sender: userId,
            stateKey: userId,
            content,
          });
        });
        await committed;
      } catch (error) {
        if (!(error instanceof MatrixError)) throw error;
      }
    }
  }

  /** The room, which the sender must be joined to for acting on others. */
  async #resident(roomId: string, sender: string): Promise<Room> {
    const room = await this.#parts.rooms.get(roomId);
    if (!room?.isJoined(sender)) throw forbidden('You are not in that room');
    return room;
  }

  async #append(roomId: string, sender: string, target: string, content: JsonObject): Promise<void> {
    const { rooms } = this.#parts;
    const { committed } = await rooms.exclusive(roomId, (room) =>
      appendDraft(rooms, room, { type: 'm.room.member', sender, stateKey: target, content }),
    );
    await committed;
  }

  async #memberContent(userId: string): Promise<JsonObject> {
    const { displayname, avatar_url } = await this.#parts.profile(userId);
    return { ...(displayname ? { displayname } : {}), ...(avatar_url ? { avatar_url } : {}) };
  }

  async #sameProfile(room: Room, userId: string, content: JsonObject): Promise<boolean> {
    const ref = room.state.get('m.room.member', userId);
    const current = ref && (await this.#parts.rooms.parts.events.get(ref.eventId));
    return (
      current?.content.displayname === content.displayname &&
      current?.content.avatar_url === content.avatar_url
    );
  }

  /** Servers that may know the room: those named by the caller, the inviter's, the one in the room id. */
  async #candidates(
    room: Room | undefined,
    roomId: string,
    userId: string,
    servers: readonly string[],
  ): Promise<string[]> {
    const own = this.#parts.rooms.parts.serverName;
    const candidates = new Set(servers);
    const member = room?.member(userId);
    if (member && (member.membership === 'invite' || member.membership === 'knock'))
      candidates.add(serverNameOf(member.sender));
    for (const server of room?.servers.keys() ?? []) candidates.add(server);
    // Room ids since version 12 name no server.
    if (roomId.includes(':')) candidates.add(serverNameOf(roomId));
    candidates.delete(own);
    return [...candidates].slice(0, 50);
  }
}
