import { forbidden, invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Memberships } from './memberships.ts';
import { completeRoom } from './partial-state/partial-rooms.ts';
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

/** An invite of a local user, from wherever it comes. */
export interface Invite {
  readonly roomId: string;
  readonly sender: string;
  readonly target: string;
  readonly content: JsonObject;
}

/** Throws, say M_FORBIDDEN or M_INVITE_BLOCKED, when policy or the user wants no such invite. */
export type InvitePolicy = (invite: Invite) => Promise<void>;

export interface MembershipParts {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly remote: RemoteMembership;
  /** Profile of a local user, for their member events. */
  readonly profile: (userId: string) => Promise<Profile>;
  readonly mayInvite?: InvitePolicy | undefined;
  /** The user who sends the server's notices, whose invites cannot be rejected (spec: "Server Notices"). */
  readonly noticesSender?: string;
}

/** Servers that one join or knock may try. */
const MAX_SERVERS = 50;

/** Joins, leaves, invites, kicks, bans and knocks of local users. Each throws M_FORBIDDEN where the rules refuse. */
export class Membership {
  readonly #parts: MembershipParts;

  constructor(parts: MembershipParts) {
    this.#parts = parts;
  }

  /**
   * Joins a room that this server is in, or by way of others.
   *
   * @param servers where to try; where none is named, the servers that are known here
   */
  async join(
    roomId: string,
    userId: string,
    servers: readonly string[],
    extra: JsonObject = {},
  ): Promise<void> {
    const { rooms, remote } = this.#parts;
    const [room, profile] = await Promise.all([rooms.get(roomId), this.#memberContent(userId)]);
    // Whoever is there already keeps the name that they have in the room.
    if (room?.isResident && room.isJoined(userId)) return;
    await this.requireMayJoin(room, userId);
    const content: JsonObject = { ...profile, ...extra, membership: 'join' };
    if (room?.isResident && (await joinFromHere(rooms, roomId, userId, content))) return;
    await this.#byWayOfOthers(room, roomId, userId, servers, (candidates) =>
      remote.join(roomId, userId, candidates, content),
    );
  }

  /** Throws when the user is not to be in that room besides those that they are in. Here nobody is kept from anything. */
  protected async requireMayJoin(_room: Room | undefined, _userId: string): Promise<void> {}

  async leave(roomId: string, userId: string, extra: JsonObject = {}): Promise<void> {
    const { rooms, remote } = this.#parts;
    const room = await rooms.get(roomId);
    const membership = room?.membership(userId);
    if (!room || membership === undefined) throw notFound('You are not in that room');
    if (membership === 'leave') return;
    if (membership === 'ban') throw forbidden('You are banned from that room');
    if (membership === 'invite' && room.member(userId)?.sender === this.#parts.noticesSender)
      throw new MatrixError(
        403,
        'M_CANNOT_LEAVE_SERVER_NOTICE_ROOM',
        'Notices of this server cannot be refused',
      );
    const content = { ...extra, membership: 'leave' };
    if (!room.isResident) return remote.leave(roomId, userId, content);
    await this.#append(roomId, userId, userId, content);
  }

  async invite(roomId: string, sender: string, target: string, extra: JsonObject = {}): Promise<void> {
    const { rooms, remote, mayInvite } = this.#parts;
    if (!parseUserId(target)) throw invalidParam('That is not a user id');
    const room = await this.#resident(roomId, sender);
    if (room.isJoined(target)) throw forbidden('The user is in the room already');
    const isLocal = serverNameOf(target) === rooms.parts.serverName;
    const content = { ...(isLocal ? await this.#memberContent(target) : {}), ...extra, membership: 'invite' };
    if (!isLocal) return void (await remote.invite(roomId, sender, target, content));
    await mayInvite?.({ roomId, sender, target, content });
    await this.#append(roomId, sender, target, content);
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
    await this.#byWayOfOthers(room, roomId, userId, servers, (candidates) =>
      remote.knock(roomId, userId, candidates, content),
    );
  }

  /**
   * Sets a membership by its state event (`PUT …/state/m.room.member/{userId}`), with all that the endpoint for it does.
   *
   * @returns the id of the event that is in force then
   */
  async set(
    roomId: string,
    sender: string,
    target: string,
    content: JsonObject,
    originServerTs?: number,
  ): Promise<string> {
    const { membership, ...extra } = content;
    if (!parseUserId(target)) throw invalidParam('The state key is not a user id');
    const room = await this.#parts.rooms.get(roomId);
    if (target !== sender) {
      if (membership === 'invite') await this.invite(roomId, sender, target, extra);
      else {
        await this.#resident(roomId, sender);
        await this.#append(roomId, sender, target, content, originServerTs);
      }
    } else if (membership === 'join' && room?.isJoined(sender)) {
      // The authoriser's signature was for the join; a change of profile must not claim it again.
      delete extra.join_authorised_via_users_server;
      await this.#append(roomId, sender, sender, { ...extra, membership }, originServerTs);
    } else if (membership === 'join') await this.join(roomId, sender, [], extra);
    else if (membership === 'leave') await this.leave(roomId, sender, extra);
    else if (membership === 'knock') await this.knock(roomId, sender, [], extra);
    else {
      await this.#resident(roomId, sender);
      await this.#append(roomId, sender, sender, content);
    }
    const current = (await this.#parts.rooms.require(roomId)).member(target);
    if (!current) throw notFound('The user is not in that room');
    return current.eventId;
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
    return room.partial ? ((await completeRoom(this.#parts.rooms, roomId)) ?? room) : room;
  }

  async #append(
    roomId: string,
    sender: string,
    target: string,
    content: JsonObject,
    originServerTs?: number,
  ): Promise<void> {
    const { rooms } = this.#parts;
    const draft = { type: 'm.room.member', sender, stateKey: target, content, originServerTs };
    const { committed } = await rooms.exclusive(roomId, (room) => appendDraft(rooms, room, draft));
    await committed;
  }

  async #memberContent(userId: string): Promise<JsonObject> {
    const { displayname, avatar_url } = await this.#parts.profile(userId);
    return { ...(displayname ? { displayname } : {}), ...(avatar_url ? { avatar_url } : {}) };
  }

  /**
   * Asks other servers for the way into a room: those named by the caller and the inviter's; where that is nobody, those
   * that were in the room when this server was, and the one in the room id, which need not know the room.
   */
  async #byWayOfOthers(
    room: Room | undefined,
    roomId: string,
    userId: string,
    named: readonly string[],
    ask: (servers: string[]) => Promise<void>,
  ): Promise<void> {
    const own = this.#parts.rooms.parts.serverName;
    const servers = new Set(named);
    const member = room?.member(userId);
    if (member && (member.membership === 'invite' || member.membership === 'knock'))
      servers.add(serverNameOf(member.sender));
    servers.delete(own);
    if (servers.size > 0 || room?.isResident) return ask([...servers].slice(0, MAX_SERVERS));
    // Room ids since version 12 name no server.
    const guesses = new Set([
      ...(room?.otherServers ?? []),
      ...(roomId.includes(':') ? [serverNameOf(roomId)] : []),
    ]);
    guesses.delete(own);
    if (guesses.size === 0) throw unreachable();
    try {
      await ask([...guesses].slice(0, MAX_SERVERS));
    } catch (error) {
      throw error instanceof MatrixError && error.status >= 500 ? unreachable() : error;
    }
  }
}

const unreachable = () => notFound('No known servers are in that room');
