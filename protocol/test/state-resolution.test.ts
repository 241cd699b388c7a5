import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { authoriseByAuthEvents } from '../auth-rules/index.ts';
import { type AuthView, type JsonObject, type StateMap, stateKeyOf } from '../event.ts';
import type { RoomVersion } from '../room-versions.ts';
import { authDifference, conflictedSubgraph, powerLevelsChain } from '../state-resolution/auth-graph.ts';
import { resolveAsync, resolveWith } from '../state-resolution/index.ts';
import { createOf, entriesOf, mapOf, member, versionOf, view } from './graph.ts';
import { type Graph, growRoom, step } from './random-room.ts';

const VERSIONS = ['1', '2', '6', '11', '12'].map(versionOf);
const version = fc.constantFrom(...VERSIONS);
const sinceVersion2 = fc.constantFrom(...VERSIONS.slice(1));
const steps = fc.array(step, { maxLength: 40 });
const picks = fc.array(fc.nat(), { minLength: 1, maxLength: 4 });

const sourceOf = ({ events }: Pick<Graph, 'events'>) => ({ event: (id: string) => events.get(id) });

function pickStates({ stateAfter }: Graph, numbers: readonly number[]): StateMap[] {
  const states = [...stateAfter.values()];
  return numbers.map((n) => states[n % states.length]!);
}

describe('state resolution of any room', () => {
  test('does not depend on the order of states or of their keys', () => {
    fc.assert(
      fc.property(version, steps, picks, (version, steps, numbers) => {
        const graph = growRoom(version, steps);
        const states = pickStates(graph, numbers);
        const resolved = entriesOf(resolveWith(version, states, sourceOf(graph)));
        const reversed = states.toReversed().map((state) => new Map([...state].reverse()));
        assert.deepEqual(entriesOf(resolveWith(version, reversed, sourceOf(graph))), resolved);
      }),
      { numRuns: 150 },
    );
  });

  test('leaves a state as it is that meets itself', () => {
    fc.assert(
      fc.property(version, steps, fc.nat(), (version, steps, number) => {
        const graph = growRoom(version, steps);
        const [state] = pickStates(graph, [number]);
        const resolved = resolveWith(version, [state!, new Map(state), state!], sourceOf(graph));
        assert.deepEqual(entriesOf(resolved), entriesOf(state!));
      }),
      { numRuns: 60 },
    );
  });

  test('keeps what all agree on, and takes nothing from elsewhere', () => {
    fc.assert(
      fc.property(version, steps, picks, (version, steps, numbers) => {
        const graph = growRoom(version, steps);
        const states = pickStates(graph, numbers);
        const resolved = resolveWith(version, states, sourceOf(graph));
        for (const [key, id] of states[0]!)
          if (states.every((state) => state.get(key) === id)) assert.equal(resolved.get(key), id);
        const possible = new Set(states.flatMap((state) => [...state.values()]));
        for (const id of authDifference(
          [...states.map((state) => [...state.values()]), []],
          [],
          sourceOf(graph),
        ))
          possible.add(id);
        for (const [key, id] of resolved) {
          assert.ok(possible.has(id), `${id} comes from nowhere`);
          const event = graph.events.get(id)!;
          assert.equal(stateKeyOf(event.type, event.stateKey!), key);
        }
      }),
      { numRuns: 100 },
    );
  });

  test('yields only events that their own auth events allow', () => {
    fc.assert(
      fc.property(version, steps, picks, (version, steps, numbers) => {
        const graph = growRoom(version, steps);
        const [create] = graph.events.values();
        for (const id of resolveWith(version, pickStates(graph, numbers), sourceOf(graph)).values()) {
          const event = graph.events.get(id)!;
          const auth = event.authEvents.map((each) => graph.events.get(each)!);
          assert.equal(authoriseByAuthEvents(event, auth, version, create), undefined);
        }
      }),
      { numRuns: 100 },
    );
  });

  test('is the same with events loaded in batches', async () => {
    await fc.assert(
      fc.asyncProperty(version, steps, picks, fc.boolean(), async (version, steps, numbers, byChain) => {
        const graph = growRoom(version, steps);
        const states = pickStates(graph, numbers);
        const source = sourceOf(graph);
        let batches = 0;
        const resolved = await resolveAsync(version, states, {
          async events(ids) {
            batches++;
            assert.equal(new Set(ids).size, ids.length);
            return new Map(ids.flatMap((id) => (graph.events.has(id) ? [[id, graph.events.get(id)!]] : [])));
          },
          authDifference: async (sets, common) => authDifference(sets, common, source),
          conflictedSubgraph: async (ids) => conflictedSubgraph(ids, source),
          ...(byChain && {
            powerLevelsChain: async (ids: readonly string[]) => powerLevelsChain(ids, source),
          }),
        });
        assert.deepEqual(entriesOf(resolved), entriesOf(resolveWith(version, states, source)));
        if (byChain) assert.ok(batches <= 2);
      }),
      { numRuns: 100 },
    );
  });

  test('never lets a rejected event in', () => {
    fc.assert(
      fc.property(sinceVersion2, steps, picks, fc.nat(), (version, steps, numbers, rejected) => {
        const graph = growRoom(version, steps);
        const states = pickStates(graph, numbers);
        const ids = [...graph.events.keys()];
        const id = ids[rejected % ids.length]!;
        graph.events.set(id, { ...graph.events.get(id)!, rejected: true });
        const agreed = states.every((state) => [...state.values()].includes(id));
        const resolved = resolveWith(version, states, sourceOf(graph));
        if (!agreed) assert.ok(![...resolved.values()].includes(id));
      }),
      { numRuns: 100 },
    );
  });
});

test('graphs that make no sense end no resolution', () => {
  const id = fc.integer({ min: 0, max: 15 }).map((n) => `$${n}`);
  const event = fc.record({
    type: fc.constantFrom('m.room.create', 'm.room.member', 'm.room.power_levels', 'm.room.join_rules', 'x'),
    stateKey: fc.constantFrom('', '@a:a', '@b:b', undefined),
    sender: fc.constantFrom('@a:a', '@b:b'),
    content: fc.constantFrom(
      {},
      { membership: 'ban' },
      { membership: 'join' },
      { creator: '@a:a' },
      { users: [] },
    ),
    originServerTs: fc.nat(3),
    authEvents: fc.array(id, { maxLength: 40 }),
    prevEvents: fc.array(id, { maxLength: 2 }),
    rejected: fc.boolean(),
  });
  const state = fc.array(
    fc.tuple(fc.constantFrom('m.room.member\0@a:a', 'm.room.power_levels\0', 'x\0'), id),
  );
  fc.assert(
    fc.property(
      version,
      fc.array(event, { maxLength: 12 }),
      fc.array(state, { maxLength: 4 }),
      (version, events, states) => {
        const known = new Map(
          events.map((each, i) => [
            `$${i}`,
            view({ ...each, eventId: `$${i}`, content: each.content as JsonObject }),
          ]),
        );
        const maps = states.map((entries) => new Map(entries));
        const source = { event: (id: string) => known.get(id) };
        const resolved = entriesOf(resolveWith(version, maps, source));
        assert.deepEqual(entriesOf(resolveWith(version, maps.toReversed(), source)), resolved);
      },
    ),
    { numRuns: 400 },
  );
});

/** Alice made the room and has all power in it, Bob has 50; Carol and Dave may come and go. */
class Room {
  readonly version: RoomVersion;
  readonly events = new Map<string, AuthView>();
  readonly base: AuthView[] = [];

  constructor(id: string) {
    this.version = versionOf(id);
    this.base.push(this.keep(createOf(this.version)));
    this.base.push(this.add(this.base, member('@alice:a', 'join', { prevEvents: ['$create'] })));
    const users = { ...(this.version.privilegedCreators ? {} : { '@alice:a': 100 }), '@bob:b': 50 };
    this.base.push(this.add(this.base, view({ type: 'm.room.power_levels', content: { users } })));
    this.base.push(
      this.add(this.base, view({ type: 'm.room.join_rules', content: { join_rule: 'public' } })),
    );
    this.base.push(this.add(this.base, member('@bob:b', 'join')));
  }

  keep(event: AuthView): AuthView {
    this.events.set(event.eventId, event);
    return event;
  }

  /** The event, authorised by the state of those events; of several for one key the last. */
  add(state: readonly AuthView[], event: AuthView): AuthView {
    const map = mapOf(state);
    const roomId = this.base[0]!.roomId;
    const authEvents = this.base[0]
      ? [
          ...(this.version.roomIdIsCreateHash ? [] : ['m.room.create\0']),
          'm.room.power_levels\0',
          `m.room.member\0${event.sender}`,
          ...(event.type === 'm.room.member'
            ? [
                ...(event.content.membership === 'join' ? ['m.room.join_rules\0'] : []),
                `m.room.member\0${event.stateKey}`,
              ]
            : []),
        ].map((key) => map.get(key))
      : [];
    return this.keep({
      ...event,
      roomId,
      authEvents: [...new Set(authEvents.filter((id) => id !== undefined))],
    });
  }

  /** What stands at each key of the resolution of base + each branch. */
  resolve(...branches: AuthView[][]): (type: string, stateKey?: string) => AuthView | undefined {
    const states = branches.map((branch) => mapOf([...this.base, ...branch]));
    const state = resolveWith(this.version, states, { event: (id) => this.events.get(id) });
    return (type, stateKey = '') => this.events.get(state.get(stateKeyOf(type, stateKey)) ?? '');
  }
}

for (const id of ['2', '11', '12'])
  describe(`forks of a room of version ${id}`, () => {
    test('a ban stands against what the banned did meanwhile', () => {
      const room = new Room(id);
      const ban = room.add(room.base, member('@bob:b', 'ban', { sender: '@alice:a' }));
      const topic = room.add(room.base, view({ type: 'm.room.topic', sender: '@bob:b' }));
      const at = room.resolve([ban], [topic]);
      assert.equal(at('m.room.member', '@bob:b'), ban);
      assert.equal(at('m.room.topic'), undefined);
    });

    test('a demotion stands against what the demoted did meanwhile, whenever they say it was', () => {
      const room = new Room(id);
      const demotion = room.add(
        room.base,
        view({
          type: 'm.room.power_levels',
          content: { users: room.version.privilegedCreators ? {} : { '@alice:a': 100 } },
        }),
      );
      const levels = room.add(
        room.base,
        view({
          type: 'm.room.power_levels',
          sender: '@bob:b',
          originServerTs: 0,
          content: { ...room.base[2]!.content, events: { 'm.room.topic': 10 } },
        }),
      );
      const rules = room.add(
        [...room.base, levels],
        view({
          type: 'm.room.join_rules',
          sender: '@bob:b',
          originServerTs: 0,
          content: { join_rule: 'invite' },
        }),
      );
      const at = room.resolve([demotion], [levels, rules]);
      assert.equal(at('m.room.power_levels'), demotion);
      assert.equal(at('m.room.join_rules'), room.base[3]);
    });

    test('of two who ban each other the more powerful wins', () => {
      const room = new Room(id);
      const carol = room.add(room.base, member('@carol:c', 'join'));
      room.base.push(carol);
      const byAlice = room.add(room.base, member('@bob:b', 'ban', { sender: '@alice:a' }));
      const byBob = room.add(room.base, member('@carol:c', 'ban', { sender: '@bob:b', originServerTs: 0 }));
      const at = room.resolve([byAlice], [byBob]);
      assert.equal(at('m.room.member', '@bob:b'), byAlice);
      assert.equal(at('m.room.member', '@carol:c'), carol);
    });

    test('joins on both sides stay', () => {
      const room = new Room(id);
      const carol = room.add(room.base, member('@carol:c', 'join'));
      const dave = room.add(room.base, member('@dave:d', 'join'));
      const at = room.resolve([carol], [dave]);
      assert.equal(at('m.room.member', '@carol:c'), carol);
      assert.equal(at('m.room.member', '@dave:d'), dave);
    });

    test('a closed door keeps out who came in meanwhile', () => {
      const room = new Room(id);
      const rules = room.add(
        room.base,
        view({ type: 'm.room.join_rules', content: { join_rule: 'invite' } }),
      );
      const carol = room.add(room.base, member('@carol:c', 'join'));
      const at = room.resolve([rules], [carol]);
      assert.equal(at('m.room.join_rules'), rules);
      assert.equal(at('m.room.member', '@carol:c'), undefined);
    });

    test('of two topics under the same power levels the later wins', () => {
      const room = new Room(id);
      const early = room.add(room.base, view({ type: 'm.room.topic', originServerTs: 10 }));
      const late = room.add(room.base, view({ type: 'm.room.topic', sender: '@bob:b', originServerTs: 20 }));
      assert.equal(room.resolve([late], [early])('m.room.topic'), late);
    });

    test('a topic under newer power levels wins over a later one under older', () => {
      const room = new Room(id);
      const levels = room.add(
        room.base,
        view({ type: 'm.room.power_levels', content: { ...room.base[2]!.content, ban: 60 } }),
      );
      const newer = room.add([...room.base, levels], view({ type: 'm.room.topic', originServerTs: 10 }));
      const older = room.add(room.base, view({ type: 'm.room.topic', originServerTs: 20 }));
      assert.equal(room.resolve([levels, newer], [older])('m.room.topic'), newer);
    });
  });

test('in version 12 a creator wins over any level', () => {
  const room = new Room('12');
  const levels = { ...room.base[2]!.content, users: { '@bob:b': 2 ** 53 - 1 } };
  room.base.push(room.add(room.base, view({ type: 'm.room.power_levels', content: levels })));
  const ban = room.add(room.base, member('@bob:b', 'ban', { sender: '@alice:a', originServerTs: 2 ** 50 }));
  const rules = room.add(
    room.base,
    view({
      type: 'm.room.join_rules',
      sender: '@bob:b',
      originServerTs: 0,
      content: { join_rule: 'invite' },
    }),
  );
  const at = room.resolve([ban], [rules]);
  assert.equal(at('m.room.member', '@bob:b'), ban);
  assert.equal(at('m.room.join_rules'), room.base[3]);
});

describe('state resolution v1', () => {
  test('takes power levels by depth for as long as each allows the next', () => {
    const room = new Room('1');
    const levels = (depth: number, users: Record<string, number>, sender: string) =>
      room.add(room.base, view({ type: 'm.room.power_levels', depth, sender, content: { users } }));
    const first = levels(10, { '@alice:a': 100 }, '@alice:a');
    const second = levels(11, { '@alice:a': 100, '@bob:b': 50 }, '@alice:a');
    const third = levels(12, { '@alice:a': 100, '@bob:b': 50, '@carol:c': 50 }, '@bob:b');
    assert.equal(room.resolve([first], [second], [third])('m.room.power_levels'), third);
    // Bob has no power by the first, so his is never reached.
    assert.equal(room.resolve([first], [third])('m.room.power_levels'), first);
  });

  test('takes of other events the deepest that is allowed', () => {
    const room = new Room('1');
    const topic = (depth: number, sender: string) =>
      room.add(room.base, view({ type: 'm.room.topic', depth, sender }));
    const byAlice = topic(10, '@alice:a');
    const byCarol = topic(11, '@carol:c');
    assert.equal(room.resolve([byAlice], [byCarol])('m.room.topic'), byAlice);
    assert.equal(room.resolve([byAlice], [topic(12, '@bob:b')])('m.room.topic')?.sender, '@bob:b');
  });

  test('calls it no conflict when one side lacks a key', () => {
    const room = new Room('1');
    const topic = room.add(room.base, view({ type: 'm.room.topic', sender: '@nobody:d' }));
    assert.equal(room.resolve([topic], [])('m.room.topic'), topic);
  });
});
