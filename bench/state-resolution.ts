/**
 * Times of state resolution: rooms of some size in which both sides of a fork saw some users join, each in another
 * order. Run with `node bench/state-resolution.ts`. With `--dump FOLDER` the forks are written down as well, for
 * `synapse-state-resolution.py` to resolve.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { JsonObject, RoomEvent, StateMap } from '@trellis/protocol/event.ts';
import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { resolveWith } from '@trellis/protocol/state-resolution/index.ts';

interface Fork {
  readonly events: Map<string, RoomEvent>;
  readonly states: StateMap[];
}

const ROUNDS = 9;
const SERVER = 'example.org';
const KEY = SigningKey.generate();
const { dump } = parseArgs({ options: { dump: { type: 'string' } } }).values;

console.log('version  state  conflicted/side  first ms  median ms  heap MB');
for (const id of ['11', '12'])
  for (const [size, conflicted] of [
    [1000, 50],
    [1000, 900],
    [10_000, 50],
    [10_000, 1000],
    [10_000, 5000],
    [10_000, 9000],
  ] as const)
    measure(roomVersion(id)!, size, conflicted);

function measure(version: RoomVersion, size: number, conflicted: number): void {
  const times: number[] = [];
  const { events, states } = fork(version, size, conflicted);
  if (dump) writeDown(dump, `${version.id}-${size}-${conflicted}`, version, { events, states });
  // Without garbage from before, growth of the heap is what the resolution allocated.
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  let grown = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.cpuUsage();
    const state = resolveWith(version, states, { event: (id) => events.get(id) });
    const { user, system } = process.cpuUsage(start);
    times.push((user + system) / 1000);
    if (round === 0) grown = process.memoryUsage().heapUsed - before;
    if (state.size !== size) throw new Error(`${state.size} keys instead of ${size}`);
  }
  const median = times.slice(1).sort((a, b) => a - b)[Math.floor((ROUNDS - 1) / 2)]!;
  const columns = [
    version.id,
    size,
    conflicted,
    times[0]!.toFixed(1),
    median.toFixed(1),
    (grown / 1e6).toFixed(1),
  ];
  console.log(columns.map((column, i) => String(column).padStart([7, 7, 17, 10, 11, 9][i]!)).join(''));
}

/** A public room of `size` state events, in which each of `conflicted` users joined once on either side. */
function fork(version: RoomVersion, size: number, conflicted: number): Fork {
  const events = new Map<string, RoomEvent>();
  let roomId: string | undefined = version.roomIdIsCreateHash ? undefined : `!room:${SERVER}`;
  const add = (type: string, sender: string, stateKey: string, content: JsonObject, authEvents: string[]) => {
    const at = events.size;
    const event = buildEvent(
      {
        ...(roomId === undefined ? {} : { room_id: roomId }),
        sender,
        type,
        state_key: stateKey,
        content,
        prev_events: [],
        auth_events: authEvents,
        depth: at + 1,
        origin_server_ts: 1_700_000_000_000 + at,
      },
      { version, key: KEY, serverName: SERVER },
    );
    roomId ??= event.roomId;
    events.set(event.eventId, event);
    return event.eventId;
  };
  const admin = `@admin:${SERVER}`;
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
  const userId = (i: number) => `@user${i}:${SERVER}`;
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

function writeDown(folder: string, name: string, version: RoomVersion, { events, states }: Fork): void {
  mkdirSync(folder, { recursive: true });
  const fork = {
    version: version.id,
    room_id: [...events.values()][0]!.roomId,
    events: [...events.values()].map(({ pdu }) => pdu),
    states: states.map((state) => [...state].map(([key, eventId]) => [...splitStateKey(key), eventId])),
  };
  writeFileSync(join(folder, `${name}.json`), JSON.stringify(fork));
}
