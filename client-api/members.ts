import { forbidden, invalidParam } from '@trellis/protocol/errors.ts';
import { type JsonObject, splitStateKey } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { stateAfterEvent, stateAtPosition } from '@trellis/rooms/event-state.ts';
import { completeRoom } from '@trellis/rooms/partial-state/partial-rooms.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { type Requester, requesterOf } from './authentication.ts';
import { sendJson } from './client-events.ts';
import { eventListJson } from './event-json.ts';
import { type RoomAccess, viewCompleteRoom } from './room-access.ts';
import { parsePlaceToken } from './sync/token.ts';

export interface MembersDeps {
  readonly access: RoomAccess;
  /** Whether an application service may act as the user. */
  readonly actsAs: (appserviceId: string, userId: string) => boolean;
}

/** Members read at a time. */
const AT_A_TIME = 1000;

const MEMBERSHIPS: readonly string[] = ['join', 'invite', 'knock', 'leave', 'ban'];

const text = Type.Optional(Type.String());
const querystring = Type.Object({ at: text, membership: text, not_membership: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** Who is in a room (spec: "Getting events for a room"). */
export function memberRoutes(app: FastifyInstance, { access, actsAs }: MembersDeps): void {
  const { rooms } = access;

  app.get<{ Params: { roomId: string }; Querystring: Query }>(
    '/_matrix/client/v3/rooms/:roomId/members',
    { schema: { querystring }, config: { guests: true } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const { at, membership, not_membership: notMembership } = request.query;
      for (const value of [membership, notMembership])
        if (value !== undefined && !MEMBERSHIPS.includes(value))
          throw invalidParam(`${value} is no membership`);
      const view = await viewCompleteRoom(access, request.params.roomId, reader.userId);
      const place = at === undefined ? Number.POSITIVE_INFINITY : parsePlaceToken(at);
      const state = place >= view.end ? view.state : await stateAt(view.room, place);
      const members = (await memberEvents(access, state)).filter(({ content }) => {
        if (membership === undefined && notMembership === undefined) return true;
        if (membership !== undefined && content.membership === membership) return true;
        return notMembership !== undefined && content.membership !== notMembership;
      });
      return sendJson(reply, `{"chunk":${eventListJson(members, reader)}}`);
    },
  );

  app.get<{ Params: { roomId: string } }>(
    '/_matrix/client/v3/rooms/:roomId/joined_members',
    async (request) => {
      const requester = requesterOf(request);
      const { roomId } = request.params;
      const known = await rooms.get(roomId);
      if (!known || !isIn(known, requester)) throw forbidden('You are not in that room');
      const room = known.partial ? ((await completeRoom(rooms, roomId)) ?? known) : known;
      const ids: string[] = [];
      for (const [, { membership, eventId }] of room.members()) if (membership === 'join') ids.push(eventId);
      const joined: Record<string, object> = Object.create(null);
      // A few at a time and past the cache, in which a large room's members would leave nothing else.
      const read = (from: number) => rooms.parts.events.jsonByIds(ids.slice(from, from + AT_A_TIME));
      let next = read(0);
      for (let i = 0; i < ids.length; i += AT_A_TIME) {
        const chunk = await next;
        next = read(i + AT_A_TIME);
        // Whoever waits for it hears of it.
        next.catch(() => {});
        for (const json of chunk) {
          const { state_key: userId, content } = decodeJson(json) as {
            state_key: string;
            content: JsonObject;
          };
          joined[userId] = {
            display_name: typeof content.displayname === 'string' ? content.displayname : null,
            avatar_url: typeof content.avatar_url === 'string' ? content.avatar_url : null,
          };
        }
      }
      return { joined };
    },
  );

  /**
   * The state at a place. The timeline of a sync that shows a room from its beginning starts before anybody was in the
   * room: whoever asks for its members is given the one who made it.
   */
  async function stateAt(room: Room, place: number): Promise<Snapshot> {
    const state = await stateAtPosition(rooms, room, place);
    if (state.id !== 0) return state;
    const first = await rooms.parts.events.timeline(room.nid, {
      after: place,
      direction: 'forward',
      limit: 2,
    });
    const joined = first.find(({ type }) => type === 'm.room.member');
    return joined ? stateAfterEvent(rooms, joined) : state;
  }

  /** An application service is in the room by any of its users. */
  function isIn(room: Room, { userId, appserviceId }: Requester): boolean {
    if (room.isJoined(userId)) return true;
    if (appserviceId === undefined) return false;
    for (const member of room.joinedHere) if (actsAs(appserviceId, member)) return true;
    return false;
  }
}

async function memberEvents({ rooms }: RoomAccess, state: Snapshot): Promise<StoredEvent[]> {
  const ids: string[] = [];
  for (const [key, ref] of state.entries())
    if (splitStateKey(key)[0] === 'm.room.member') ids.push(ref.eventId);
  return [...(await rooms.parts.events.getMany(ids)).values()];
}
