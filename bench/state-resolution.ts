/**
 * Times of state resolution: rooms of some size in which both sides of a fork saw some users join, each in another
 * order. Run with `node bench/state-resolution.ts`.
 */
import { performance } from 'node:perf_hooks';
import type { AuthView, JsonObject, StateMap } from '@trellis/protocol/event.ts';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import { resolveWith } from '@trellis/protocol/state-resolution/index.ts';

interface Fork {
  readonly events: Map<string, AuthView>;
  readonly states: StateMap[];
}

const ROUNDS = 9;

console.log('version  state  conflicted/side  first ms  median ms');
for (const id of ['11', '12'])
  for (const [size, conflicted] of [
    [1000, 50],
    [1000, 900],
    [10_000, 50],
    [10_000, 1000],
    [10_000, 9000],
  ] as const)
    measure(roomVersion(id)!, size, conflicted);

function measure(version: RoomVersion, size: number, conflicted: number): void {
  const times: number[] = [];
  const { events, states } = fork(version, size, conflicted);
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    const state = resolveWith(version, states, { event: (id) => events.get(id) });
    times.push(performance.now() - start);
    if (state.size !== size) throw new Error(`${state.size} keys instead of ${size}`);
  }
  const median = times.slice(1).sort((a, b) => a - b)[Math.floor((ROUNDS - 1) / 2)]!;
  const columns = [version.id, size, conflicted, times[0]!.toFixed(1), median.toFixed(1)];
  console.log(columns.map((column, i) => String(column).padStart([7, 7, 17, 10, 11][i]!)).join(''));
}

/** A public room of `size` state events, in which each of `conflicted` users joined once on either side. */
function fork(version: RoomVersion, size: number, conflicted: number): Fork {
  const events = new Map<string, AuthView>();
  const add = (type: string, sender: string, stateKey: string, content: JsonObject, authEvents: string[]) => {
    const at = events.size;
    // As long as real ids, and in an order of their own.
    const eventId =
      type === 'm.room.create'
        ? `$${'c'.repeat(43)}`
        : `$${((at * 7919) % 1_000_003).toString(36).padStart(43, 'x')}`;
    events.set(eventId, {
      eventId,
      roomId: version.roomIdIsCreateHash ? `!${'c'.repeat(43)}` : '!room:example.org',
      type,
      sender,
      stateKey,
      content,
      originServerTs: 1_700_000_000_000 + at,
      depth: at + 1,
      authEvents,
      prevEvents: [],
      redacts: undefined,
    });
    return eventId;
  };
  const admin = '@admin:example.org';
  const create = add('m.room.create', admin, '', { room_version: version.id }, []);
  const root = version.roomIdIsCreateHash ? [] : [create];
  const join = add('m.room.member', admin, admin, { membership: 'join' }, root);
  const users: JsonObject = version.privilegedCreators ? {} : { [admin]: 100 };
  const levels = add('m.room.power_levels', admin, '', { users }, [...root, join]);
  const rules = add('m.room.join_rules', admin, '', { join_rule: 'public' }, [...root, join, levels]);
  const base: StateMap = new Map([
    [stateKeyOf('m.room.create', ''), create],
    [stateKeyOf('m.room.member', admin), join],
    [stateKeyOf('m.room.power_levels', ''), levels],
    [stateKeyOf('m.room.join_rules', ''), rules],
  ]);
  const joinOf = (user: string) =>
    add('m.room.member', user, user, { membership: 'join' }, [...root, levels, rules]);
  const userId = (i: number) => `@user${i}:server${i % 50}.example.org`;
  for (let i = 0; base.size < size - conflicted; i++)
    base.set(stateKeyOf('m.room.member', userId(i)), joinOf(userId(i)));
  const states = [new Map(base), new Map(base)];
  for (const state of states)
    for (let i = 0; i < conflicted; i++) {
      const user = userId(size + i);
      state.set(stateKeyOf('m.room.member', user), joinOf(user));
    }
  return { events, states };
}
