import { type HistoryParts, readHistory } from '@trellis/rooms/history.ts';
import type { Notifier, Positions } from '@trellis/rooms/notifier.ts';
import { strip, strippedStateEvents } from '@trellis/rooms/stripped-state.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, type EventReader, sendJson } from './client-events.ts';
import { eventJson, eventListJson } from './event-json.ts';
import { booleanOf, limitOf } from './query-values.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';
import { placeToken, syncToken } from './sync/token.ts';

interface AccountDataItem {
  readonly roomId: string | null;
  readonly type: string;
  readonly content: object;
}

/** The part of a sync's sources that these old endpoints show too. */
export interface InitialSyncSources {
  accountData(userId: string, from: number | undefined, to: number): Promise<readonly AccountDataItem[]>;
  presence(from: number | undefined, to: number): Promise<ReadonlyArray<{ readonly sender: string }>>;
  /** The user does not want to see invites by the sender (spec: "Invite permission"). */
  hidesInvite(userId: string, sender: string): Promise<boolean>;
}

export interface InitialSyncDeps {
  readonly access: RoomAccess;
  readonly history: HistoryParts;
  readonly clientEvents: ClientEvents;
  readonly notifier: Notifier;
  readonly sources: InitialSyncSources;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 100;

const text = Type.Optional(Type.String());

/** `GET /initialSync` and `GET /rooms/{roomId}/initialSync`: what clients of old, and those who peek, begin with. */
export function initialSyncRoutes(app: FastifyInstance, deps: InitialSyncDeps): void {
  const { access, notifier, sources } = deps;

  app.get<{ Params: { roomId: string }; Querystring: { limit?: string } }>(
    '/_matrix/client/v3/rooms/:roomId/initialSync',
    { schema: { querystring: Type.Object({ limit: text }) }, config: { guests: true } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const limit = limitOf(request.query.limit, DEFAULT_LIMIT, MAX_LIMIT);
      const to = notifier.positions();
      const accountData = await sources.accountData(reader.userId, undefined, to.accountData);
      return sendJson(reply, await roomInfo(deps, request.params.roomId, reader, limit, to, accountData));
    },
  );

  app.get<{ Querystring: { limit?: string; archived?: string } }>(
    '/_matrix/client/v3/initialSync',
    { schema: { querystring: Type.Object({ limit: text, archived: text }) } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const limit = limitOf(request.query.limit, DEFAULT_LIMIT, MAX_LIMIT);
      const archived = booleanOf('archived', request.query.archived);
      const to = notifier.positions();
      const accountData = await sources.accountData(reader.userId, undefined, to.accountData);
      const ignored = await deps.ignoredUsers(reader.userId);
      const rooms: string[] = [];
      for (const { roomId, membership, sender, forgotten } of (
        await access.memberships.of(reader.userId)
      ).values()) {
        const left = membership === 'leave' || membership === 'ban';
        if (left && (forgotten || !archived)) continue;
        const isHidden = ignored.has(sender) || (await sources.hidesInvite(reader.userId, sender));
        if (membership === 'invite' && isHidden) continue;
        if (membership === 'invite' || membership === 'knock')
          rooms.push(await invitation(deps, roomId, reader));
        else rooms.push(await roomInfo(deps, roomId, reader, limit, to, accountData).catch(() => ''));
      }
      const known = await access.memberships.usersSharingRoomWith(reader.userId);
      const presence = (await sources.presence(undefined, to.presence)).filter(({ sender }) =>
        known.has(sender),
      );
      const global = accountData.filter(({ roomId }) => roomId === null);
      return sendJson(
        reply,
        `{"end":"${syncToken(to)}","rooms":[${rooms.filter((room) => room !== '').join(',')}]` +
          `,"presence":${JSON.stringify(presence)},"account_data":${JSON.stringify(global.map(asEvent))}}`,
      );
    },
  );
}

async function roomInfo(
  deps: InitialSyncDeps,
  roomId: string,
  reader: EventReader,
  limit: number,
  to: Positions,
  accountData: readonly AccountDataItem[],
): Promise<string> {
  const { access, history, clientEvents } = deps;
  const { room, state, end } = await viewRoom(access, roomId, reader.userId);
  const from = Math.min(end, to.events);
  const page = await readHistory(history, room, {
    userId: reader.userId,
    direction: 'backward',
    from,
    limit,
    ignored: await deps.ignoredUsers(reader.userId),
  });
  const chunk = page.events.reverse();
  const ids = [...state.entries()].map(([, ref]) => ref.eventId);
  const stateEvents = [...(await access.rooms.parts.events.getMany(ids)).values()];
  const ofRoom = accountData.filter((item) => item.roomId === roomId);
  const membership = room.membership(reader.userId);
  const parts = [
    `"room_id":${JSON.stringify(roomId)}`,
    `"messages":{"start":"${placeToken((chunk[0]?.pos ?? from + 1) - 1)}","end":"${placeToken(from)}"` +
      `,"chunk":${await clientEvents.list(room, chunk, reader)}}`,
    `"state":${eventListJson(stateEvents, reader)}`,
    `"visibility":"${room.published ? 'public' : 'private'}"`,
    `"account_data":${JSON.stringify(ofRoom.map(asEvent))}`,
  ];
  if (membership !== undefined) parts.push(`"membership":${JSON.stringify(membership)}`);
  return `{${parts.join(',')}}`;
}

async function invitation({ access }: InitialSyncDeps, roomId: string, reader: EventReader): Promise<string> {
  const { rooms } = access;
  const room = await rooms.get(roomId);
  const member = room?.member(reader.userId);
  const event = member && (await rooms.parts.events.get(member.eventId));
  if (!room || !event) return '';
  const state = room.isResident ? await strippedStateEvents(rooms, room, event.sender) : [];
  const invite = member.membership === 'invite' ? `,"invite":${eventJson(event, reader)}` : '';
  return (
    `{"room_id":${JSON.stringify(roomId)},"membership":${JSON.stringify(member.membership)}${invite}` +
    `,"state":${JSON.stringify(state.map(strip))}}`
  );
}

function asEvent({ type, content }: AccountDataItem) {
  return { type, content };
}
