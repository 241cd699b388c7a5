import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { knownRoomVersions, type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { withSignaturesOf } from './co-signed.ts';
import type { EventVerifier } from './incoming-event.ts';
import { installRoom } from './install-room.ts';
import { JoinIntake } from './join-intake.ts';
import type { JoinsUnderWay } from './joins-under-way.ts';
import { eventFromTemplate, type WantedEvent } from './member-template.ts';
import type { RemoteMembership } from './membership.ts';
import type { Memberships } from './memberships.ts';
import { storeOutOfBand } from './out-of-band.ts';
import type { Come } from './partial-state/members.ts';
import { badAnswer, type MemberTemplate, type RemoteHandshakes, tryServers } from './remote-handshakes.ts';
import { lonelyLeave, serversBehind } from './remote-leave.ts';
import { joinFromHere } from './resident-join.ts';
import type { Rooms } from './rooms.ts';
import { appendBuilt, buildDraft, requireAllowed, sendEvent } from './send.ts';
import { stripForeign, strippedStateEvents } from './stripped-state.ts';
import { forgetUnjoined, roomOfVersion } from './unjoined-room.ts';

export interface RemoteMembershipParts {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly handshakes: RemoteHandshakes;
  readonly verifier: EventVerifier;
  /** For events of rooms that this server is in; `Receiver` is one. */
  readonly receiver: { receive(origin: string, event: RoomEvent): Promise<StoredEvent | undefined> };
  readonly joins: JoinsUnderWay;
  /** Fetches the members of rooms whose state came without them; without it, no server is asked to leave them out. */
  readonly resync?: {
    begin(roomId: string, members?: Come): Promise<void> | void;
    deviceListsPosition(): number;
  };
}

/** A leave takes place here at any rate: the user does not wait long for the others. */
const LEAVE_PATIENCE = 20_000;

interface WantedJoin {
  readonly userId: string;
  readonly servers: readonly string[];
  readonly content: JsonObject;
}

/** Our users' memberships by way of other servers. */
export class RemoteMembershipByHandshake implements RemoteMembership {
  readonly #parts: RemoteMembershipParts;

  constructor(parts: RemoteMembershipParts) {
    this.#parts = parts;
    parts.rooms.parts.cluster.serve(
      'room.join',
      async ({ userId, servers, content }: WantedJoin, roomId) => {
        await this.#joinOneByOne(roomId, userId, servers, content);
        return undefined;
      },
      { drained: false },
    );
  }

  /** By the process whose the room is: there is one such join of a room at a time, and what comes meanwhile waits. */
  async join(roomId: string, userId: string, servers: readonly string[], content: JsonObject): Promise<void> {
    await this.#parts.rooms.parts.cluster.call('room', roomId, 'room.join', { userId, servers, content });
  }

  #joinOneByOne(
    roomId: string,
    userId: string,
    servers: readonly string[],
    content: JsonObject,
  ): Promise<void> {
    const { rooms, joins } = this.#parts;
    return joins.run(roomId, async () => {
      const room = await rooms.get(roomId);
      // Another local user's join may have brought this server into the room since.
      if (room?.isResident && (await joinFromHere(rooms, roomId, userId, content))) return;
      const candidates = room?.isResident ? [...servers, ...room.servers.keys()] : servers;
      const wanted = { roomId, userId, content, isResident: room?.isResident === true };
      try {
        await tryServers(this.#others(candidates), (server) => this.#joinBy(server, wanted));
      } catch (error) {
        if (!room) await forgetUnjoined(rooms, roomId).catch(() => {});
        throw error;
      }
    });
  }

  async knock(
    roomId: string,
    userId: string,
    servers: readonly string[],
    content: JsonObject,
  ): Promise<void> {
    const { rooms, handshakes } = this.#parts;
    const versions = knownRoomVersions().filter(({ knocking }) => knocking);
    await tryServers(this.#others(servers), async (server) => {
      const template = await handshakes.makeKnock(server, roomId, userId, idsOf(versions));
      const version = versionOf(template, server);
      if (!version.knocking) throw badAnswer(server, 'the room version knows no knocking');
      const knock = this.#sign(template, { roomId, userId, membership: 'knock', content }, version, server);
      const state = await handshakes.sendKnock(server, knock);
      const stored = await storeOutOfBand(rooms, knock, stripForeign(state, roomId, version));
      if (!stored) await this.#receive(server, knock);
    });
  }

  async leave(roomId: string, userId: string, content: JsonObject): Promise<void> {
    const { rooms, memberships } = this.#parts;
    const room = await rooms.require(roomId);
    const stripped = await memberships.strippedState(userId, roomId);
    const servers = this.#others(serversBehind(room, userId, stripped));
    const accepted = await tryServers(
      servers,
      async (server) => ({ server, leave: await this.#leaveBy(server, roomId, userId, content) }),
      LEAVE_PATIENCE,
    ).catch((error: unknown) => {
      if (!(error instanceof MatrixError)) throw error;
      return undefined;
    });
    const leave = accepted?.leave ?? (await lonelyLeave(rooms, room, userId, content));
    if (await storeOutOfBand(rooms, leave, null)) return;
    // Another local user has joined meanwhile, so that the leave has to take its place in the room.
    if (accepted) await this.#receive(accepted.server, leave);
    else
      await sendEvent(rooms, roomId, {
        type: 'm.room.member',
        sender: userId,
        stateKey: userId,
        content: { ...content, membership: 'leave' },
      });
  }

  async invite(roomId: string, sender: string, target: string, content: JsonObject): Promise<StoredEvent> {
    const { rooms, handshakes } = this.#parts;
    const draft = { type: 'm.room.member', sender, stateKey: target, content };
    const { built, room, state, extremities } = await rooms.exclusive(roomId, async (room) => {
      const built = await buildDraft(rooms, room, draft);
      await requireAllowed(rooms, room, built);
      return { built, room, state: room.state, extremities: room.extremities };
    });
    // Before anyone hears of an invite that the room will not have.
    const invite = (await rooms.parts.policies?.signed(rooms, room, built)) ?? built;
    const shown = await strippedStateEvents(rooms, { state }, sender);
    const server = serverNameOf(target);
    const shownPdus = shown.map(({ pdu }) => pdu);
    // Without the room's lock: the other server may take its time.
    const signed = withSignaturesOf(server, invite, await handshakes.sendInvite(server, invite, shownPdus));
    const appended = await rooms.exclusive(roomId, async (room) =>
      room.extremities === extremities ? appendBuilt(rooms, room, signed) : undefined,
    );
    if (!appended) return this.#receive(rooms.parts.serverName, signed);
    await appended.committed;
    return appended.event;
  }

  /** @param wanted.isResident this server was in the room when the join began: there is one at a time */
  async #joinBy(
    server: string,
    { roomId, userId, content, isResident }: Omit<WantedEvent, 'membership'> & { isResident: boolean },
  ): Promise<void> {
    const { rooms, handshakes, verifier, resync } = this.#parts;
    const making = handshakes.makeJoin(server, roomId, userId, idsOf(knownRoomVersions()));
    // What will be needed once the room comes is made ready while the other server works.
    verifier.expect?.(server, making).catch(() => {});
    const template = await making;
    const version = versionOf(template, server);
    const ours = this.#sign(template, { roomId, userId, membership: 'join', content }, version, server);
    const row = roomOfVersion(rooms, roomId, version);
    row.catch(() => {});
    // Without what completes a room, it has to be taken in as a whole.
    const intake = new JoinIntake(
      { rooms, verifier },
      { server, roomId, version },
      resync ? undefined : Infinity,
    );
    const answer = await handshakes.sendJoin(server, ours, {
      omitMembers: resync !== undefined,
      take: (pdus, list) => intake.take(pdus, list),
    });
    const join = await this.#authorised(ours, answer.event, server);
    // Since a join from here was of no avail, it was one that only another server could authorise.
    if (isResident && (await rooms.get(roomId))?.isResident) await this.#receive(server, join);
    else {
      const taken = await intake.finish();
      const { state, authChain, servers = answer.serversInRoom } = taken;
      const partial = servers && { servers, deviceListsPos: resync?.deviceListsPosition() ?? 0 };
      await installRoom(rooms, verifier, { server, join, state, authChain, partial }, row);
      if (partial) await resync?.begin(roomId, taken.members);
    }
  }

  /** The join with the signature of the server that authorised it, if it had to be authorised. */
  async #authorised(ours: RoomEvent, returned: JsonObject | undefined, server: string): Promise<RoomEvent> {
    if (ours.content.join_authorised_via_users_server === undefined) return ours;
    if (!returned) throw badAnswer(server, 'it did not return the join that it had to sign');
    const join = withSignaturesOf(server, ours, returned);
    const error = (await this.#parts.verifier.verifyEventSignatures([join])).get(join.eventId);
    if (error) throw badAnswer(server, error.message);
    return join;
  }

  async #leaveBy(server: string, roomId: string, userId: string, content: JsonObject): Promise<RoomEvent> {
    const { rooms, handshakes } = this.#parts;
    const template = await handshakes.makeLeave(server, roomId, userId);
    const room = await rooms.require(roomId);
    const version = template.roomVersion === undefined ? room.version : versionOf(template, server);
    if (version.id !== room.version.id && room.extremities.length > 0)
      throw badAnswer(server, `the room is of version ${room.version.id}`);
    const leave = this.#sign(template, { roomId, userId, membership: 'leave', content }, version, server);
    await handshakes.sendLeave(server, leave);
    return leave;
  }

  #sign(template: MemberTemplate, wanted: WantedEvent, version: RoomVersion, server: string): RoomEvent {
    const { serverName, signingKey } = this.#parts.rooms.parts;
    return eventFromTemplate(template, wanted, server, { version, key: signingKey, serverName });
  }

  async #receive(server: string, event: RoomEvent): Promise<StoredEvent> {
    const received = await this.#parts.receiver.receive(server, event);
    if (received?.status !== 'accepted') throw forbidden('The room does not allow it any more');
    return received;
  }

  #others(servers: readonly string[]): string[] {
    return [...new Set(servers)].filter((server) => server !== this.#parts.rooms.parts.serverName);
  }
}

function idsOf(versions: readonly RoomVersion[]): string[] {
  return versions.map(({ id }) => id);
}

/** A template without a version is of a server that knows no more than the first two. */
function versionOf({ roomVersion: id = '1' }: MemberTemplate, server: string): RoomVersion {
  const version = roomVersion(id);
  if (!version) throw badAnswer(server, 'the room has a version that we did not offer');
  return version;
}
