import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { type AuthView, type JsonObject, type StateMap, stateKeyOf } from '../event.ts';
import { authDifference, conflictedSubgraph } from '../state-resolution/auth-graph.ts';
import { resolveAsync, resolveWith } from '../state-resolution/index.ts';
import { entriesOf, versionOf } from './graph.ts';

/**
 * Public event graphs and what they resolve to, from ruma (MIT). They are not part of this repository:
 * TRELLIS_STATE_RES_CASES says where they are.
 */
const folder =
  process.env.TRELLIS_STATE_RES_CASES ?? join(import.meta.dirname, '../../../shared/state-res-cases');
const skip = existsSync(folder) ? false : `no cases of state resolution in ${folder}`;

const BATCHES: Record<string, string[]> = {
  minimal_private_chat: ['bootstrap-private-chat'],
  minimal_public_chat: ['bootstrap-public-chat'],
  origin_server_ts_tiebreak: ['bootstrap-private-chat', 'origin-server-ts-tiebreak'],
  ban_vs_power_levels: ['bootstrap-public-chat', 'ban-vs-power-levels-alice', 'ban-vs-power-levels-bob'],
  topic_vs_power_levels: [
    'bootstrap-public-chat',
    'topic-vs-power-levels-alice',
    'topic-vs-power-levels-bob',
  ],
  power_levels_admin_vs_mod: [
    'bootstrap-public-chat',
    'power-levels-admin-vs-mod-alice',
    'power-levels-admin-vs-mod-bob',
  ],
  topic_vs_ban: ['bootstrap-public-chat', 'topic-vs-ban-common', 'topic-vs-ban-alice', 'topic-vs-ban-bob'],
  join_rules_vs_join: [
    'bootstrap-public-chat',
    'join-rules-vs-join-common',
    'join-rules-vs-join-alice',
    'join-rules-vs-join-ella',
  ],
  concurrent_joins: ['bootstrap-public-chat', 'concurrent-joins-charlie', 'concurrent-joins-ella'],
};

const MAPS = [
  {
    name: 'msc4297_problem_a_state_res_v2_0',
    folder: 'MSC4297-problem-A',
    maps: ['bob', 'charlie'],
    version: '11',
  },
  {
    name: 'msc4297_problem_a_state_res_v2_1',
    folder: 'MSC4297-problem-A',
    maps: ['bob', 'charlie'],
    version: '12',
  },
  {
    name: 'msc4297_problem_b_state_res_v2_0',
    folder: 'MSC4297-problem-B',
    maps: ['eve', 'zara'],
    version: '11',
  },
  {
    name: 'msc4297_problem_b_state_res_v2_1',
    folder: 'MSC4297-problem-B',
    maps: ['eve', 'zara'],
    version: '12',
  },
];

function read<T>(...path: string[]): T {
  return JSON.parse(readFileSync(join(folder, ...path), 'utf8')) as T;
}

function toView(pdu: JsonObject): AuthView {
  const eventId = pdu.event_id as string;
  return {
    eventId,
    roomId: (pdu.room_id as string | undefined) ?? `!${eventId.slice(1)}`,
    type: pdu.type as string,
    sender: pdu.sender as string,
    stateKey: pdu.state_key as string | undefined,
    content: pdu.content as JsonObject,
    originServerTs: pdu.origin_server_ts as number,
    depth: 1,
    authEvents: pdu.auth_events as string[],
    prevEvents: pdu.prev_events as string[],
    redacts: undefined,
  };
}

/** State after each event, resolved as they come. */
function resolveBatches(files: readonly string[]): StateMap {
  const version = versionOf('10');
  const events = new Map<string, AuthView>();
  const after = new Map<string, StateMap>();
  const ends = new Set<string>();
  const source = { event: (id: string) => events.get(id) };
  const stateAfter = (ids: Iterable<string>) =>
    resolveWith(
      version,
      [...ids].map((id) => after.get(id)!),
      source,
    );
  for (const event of files.flatMap((file) => read<JsonObject[]>(`${file}.json`)).map(toView)) {
    const state = stateAfter(event.prevEvents);
    if (event.stateKey !== undefined) state.set(stateKeyOf(event.type, event.stateKey), event.eventId);
    events.set(event.eventId, event);
    after.set(event.eventId, state);
    for (const id of event.prevEvents) ends.delete(id);
    ends.add(event.eventId);
  }
  return stateAfter(ends);
}

function expected(name: string): Array<[string, string]> {
  const events = read<Array<{ type: string; state_key: string; event_id: string }>>(
    'expected',
    `${name}.json`,
  );
  return entriesOf(new Map(events.map((event) => [stateKeyOf(event.type, event.state_key), event.event_id])));
}

for (const [name, files] of Object.entries(BATCHES))
  test(`resolves ${name}`, { skip }, () => {
    assert.deepEqual(entriesOf(resolveBatches(files)), expected(name));
  });

for (const { name, folder: sub, maps, version: id } of MAPS)
  test(`resolves ${name}`, { skip }, async () => {
    const version = versionOf(id);
    const pdus = read<JsonObject[]>(sub, `pdus-v${id}.json`).map(toView);
    const events = new Map(pdus.map((event) => [event.eventId, event]));
    const states = maps.map(
      (map): StateMap =>
        new Map(
          read<string[]>(sub, `state-${map}.json`).map((eventId) => {
            const event = events.get(eventId)!;
            return [stateKeyOf(event.type, event.stateKey!), eventId];
          }),
        ),
    );
    const source = { event: (eventId: string) => events.get(eventId) };
    assert.deepEqual(entriesOf(resolveWith(version, states, source)), expected(name));
    assert.deepEqual(entriesOf(resolveWith(version, states.toReversed(), source)), expected(name));
    // By a loader without a short cut to the chain of power levels.
    const loaded = await resolveAsync(version, states, {
      events: async (ids) =>
        new Map(
          ids.filter((eventId) => events.has(eventId)).map((eventId) => [eventId, events.get(eventId)!]),
        ),
      authDifference: async (sets, common) => authDifference(sets, common, source),
      conflictedSubgraph: async (ids) => conflictedSubgraph(ids, source),
    });
    assert.deepEqual(entriesOf(loaded), expected(name));
  });
