import fc from 'fast-check';
import { authEventKeys } from '../auth-event-selection.ts';
import { authorise } from '../auth-rules/index.ts';
import { type AuthView, type JsonObject, type StateMap, stateKeyOf } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { resolveWith } from '../state-resolution/index.ts';
import { createOf } from './graph.ts';

export const USERS = ['@alice:a', '@bob:b', '@carol:c', '@dave:d', '@eve:e'] as const;

/** One thing that somebody tries to do somewhere in the graph. */
export interface Step {
  readonly after: readonly number[];
  readonly actor: number;
  readonly target: number;
  readonly act: 'join' | 'leave' | 'invite' | 'kick' | 'ban' | 'levels' | 'rules' | 'topic' | 'message';
  readonly level: number;
  readonly ts: number;
}

export const step: fc.Arbitrary<Step> = fc.record({
  // Counted back from the newest event, so that small numbers make long graphs and large ones forks.
  after: fc.array(fc.nat(12), { minLength: 1, maxLength: 3 }),
  actor: fc.nat(USERS.length - 1),
  target: fc.nat(USERS.length - 1),
  act: fc.constantFrom<Step['act'][]>(
    'join',
    'join',
    'leave',
    'invite',
    'kick',
    'ban',
    'levels',
    'rules',
    'topic',
    'message',
  ),
  level: fc.constantFrom(0, 50, 100),
  ts: fc.nat(20),
});

export interface Graph {
  readonly version: RoomVersion;
  readonly events: Map<string, AuthView>;
  readonly stateAfter: Map<string, StateMap>;
}

/** A room's graph as an honest server has it: only what the auth rules allow at its place comes in. */
export function growRoom(version: RoomVersion, steps: readonly Step[]): Graph {
  const graph: Graph = { version, events: new Map(), stateAfter: new Map() };
  const create = createOf(version);
  add(graph, create, new Map());
  for (const [userId, act] of [
    [0, 'join'],
    [0, 'levels'],
    [0, 'rules'],
    [1, 'join'],
  ] as const)
    tryStep(graph, { after: [0], actor: userId, target: 1, act, level: 50, ts: 0 });
  for (const each of steps) tryStep(graph, each);
  return graph;
}

function tryStep(graph: Graph, { after, actor, target, act, level, ts }: Step): void {
  const { version, events, stateAfter } = graph;
  const ids = [...events.keys()];
  const prevEvents = [...new Set(after.map((back) => ids[Math.max(0, ids.length - 1 - back)]!))];
  const source = { event: (id: string) => events.get(id) };
  const state = resolveWith(
    version,
    prevEvents.map((id) => stateAfter.get(id)!),
    source,
  );
  const at = (type: string, stateKey: string) => events.get(state.get(stateKeyOf(type, stateKey)) ?? '');
  const sender = USERS[actor]!;
  const content = (): JsonObject => {
    const users = (at('m.room.power_levels', '')?.content.users ?? {}) as JsonObject;
    return {
      users: {
        ...(version.privilegedCreators ? {} : { [USERS[0]]: 100 }),
        ...users,
        [USERS[target]!]: level,
      },
    };
  };
  const moves: Record<Step['act'], { type: string; stateKey: string | undefined; content: JsonObject }> = {
    join: { type: 'm.room.member', stateKey: sender, content: { membership: 'join' } },
    leave: { type: 'm.room.member', stateKey: sender, content: { membership: 'leave' } },
    invite: { type: 'm.room.member', stateKey: USERS[target]!, content: { membership: 'invite' } },
    kick: { type: 'm.room.member', stateKey: USERS[target]!, content: { membership: 'leave' } },
    ban: { type: 'm.room.member', stateKey: USERS[target]!, content: { membership: 'ban' } },
    levels: { type: 'm.room.power_levels', stateKey: '', content: content() },
    rules: {
      type: 'm.room.join_rules',
      stateKey: '',
      content: { join_rule: level === 50 ? 'public' : 'invite' },
    },
    topic: { type: 'm.room.topic', stateKey: '', content: {} },
    message: { type: 'm.room.message', stateKey: undefined, content: {} },
  };
  const move = moves[act];
  const draft = { ...move, sender };
  const event: AuthView = {
    ...draft,
    eventId: `$${((ids.length * 7919) % 10007).toString(36)}${version.eventIds === 'server' ? ':a' : ''}`,
    roomId: events.get(ids[0]!)!.roomId,
    originServerTs: ts,
    depth: 1 + Math.max(...prevEvents.map((id) => events.get(id)!.depth)),
    authEvents: authEventKeys(draft, version)
      .map((key) => state.get(key))
      .filter((id) => id !== undefined),
    prevEvents,
    redacts: undefined,
  };
  if (authorise(event, { get: at }, version) === undefined) add(graph, event, state);
}

function add({ events, stateAfter }: Graph, event: AuthView, before: StateMap): void {
  const after = new Map(before);
  if (event.stateKey !== undefined) after.set(stateKeyOf(event.type, event.stateKey), event.eventId);
  events.set(event.eventId, event);
  stateAfter.set(event.eventId, after);
}
