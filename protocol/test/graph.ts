import type { AuthView, JsonObject, StateMap } from '../event.ts';
import { stateKeyOf } from '../event.ts';
import { type RoomVersion, roomVersion } from '../room-versions.ts';

export function versionOf(id: string): RoomVersion {
  const version = roomVersion(id);
  if (!version) throw new Error(`unknown room version ${id}`);
  return version;
}

let count = 0;

/** An event by the members that matter to a test; `state_key` is empty unless given. */
export function view(members: Partial<AuthView> & { type: string }): AuthView {
  const { stateKey = 'stateKey' in members ? undefined : '' } = members;
  return {
    eventId: `$${++count}`,
    roomId: '!room:a',
    sender: '@alice:a',
    content: {},
    originServerTs: count,
    depth: count,
    authEvents: [],
    prevEvents: ['$before'],
    redacts: undefined,
    ...members,
    stateKey,
  };
}

export function member(userId: string, membership: string, more: Partial<AuthView> = {}): AuthView {
  return view({
    type: 'm.room.member',
    stateKey: userId,
    sender: userId,
    ...more,
    content: { membership, ...more.content },
  });
}

/** An authorisation state of those events. */
export function stateOf(events: Iterable<AuthView>): {
  get(type: string, stateKey: string): AuthView | undefined;
} {
  const state = new Map<string, AuthView>();
  for (const event of events) state.set(stateKeyOf(event.type, event.stateKey ?? ''), event);
  return { get: (type, stateKey) => state.get(stateKeyOf(type, stateKey)) };
}

export function mapOf(events: Iterable<AuthView>): StateMap {
  const state: StateMap = new Map();
  for (const event of events) state.set(stateKeyOf(event.type, event.stateKey ?? ''), event.eventId);
  return state;
}

export function createOf(version: RoomVersion, content: JsonObject = {}): AuthView {
  const eventId = version.eventIds === 'server' ? '$create:a' : '$create';
  return view({
    type: 'm.room.create',
    eventId,
    roomId: version.roomIdIsCreateHash ? '!create' : '!room:a',
    prevEvents: [],
    content: {
      room_version: version.id,
      ...(version.implicitCreator ? {} : { creator: '@alice:a' }),
      ...content,
    },
  });
}

/** The state map without order, to compare. */
export function entriesOf(state: StateMap): Array<[string, string]> {
  return [...state].sort(([a], [b]) => (a < b ? -1 : 1));
}
