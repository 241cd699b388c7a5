import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cluster } from './harness/chaos/cluster.ts';
import { converge } from './harness/chaos/compare.ts';
import { Load } from './harness/chaos/load.ts';
import { Random } from './harness/chaos/random.ts';
import { describeFault, makeSchedule } from './harness/chaos/schedule.ts';
import { makeWorld, type World } from './harness/chaos/world.ts';

/** See README.md for the long form. */
const SERVERS = Number(process.env.TRELLIS_CHAOS_SERVERS ?? 3);
const SECONDS = Number(process.env.TRELLIS_CHAOS_SECONDS ?? 15);
const ROOMS = Number(process.env.TRELLIS_CHAOS_ROOMS ?? 6);
const RATE = Number(process.env.TRELLIS_CHAOS_RATE ?? 8);
/** Each server in a network namespace of its own. */
const NAMESPACES = process.env.TRELLIS_CHAOS_NAMESPACES === '1';
const SEED = process.env.TRELLIS_CHAOS_SEED ?? randomBytes(4).toString('hex');
/** Within this all servers agree again. */
const HEALED_WITHIN_MS = 30_000 + SECONDS * 500;

describe(`${SERVERS} servers that lose each other (seed ${SEED})`, () => {
  const random = new Random(SEED);
  const cluster = new Cluster(random);
  let world: World;
  before(async () => {
    process.stderr.write(`TRELLIS_CHAOS_SEED=${SEED}\n`);
    await cluster.start(SERVERS, NAMESPACES);
    world = await makeWorld(random, cluster.servers, ROOMS);
  });
  after(() => cluster.close());

  it('have the same schedule for the same seed', () => {
    const make = () => makeSchedule(new Random(SEED).for('faults'), { servers: SERVERS, seconds: SECONDS });
    assert.deepEqual(make(), make());
    assert.ok(make().length > 3);
  });

  it('agree on all rooms afterwards, and have lost nothing', async (t) => {
    const load = new Load(world);
    const faults = makeSchedule(random.for('faults'), { servers: SERVERS, seconds: SECONDS });
    for (const fault of faults) t.diagnostic(describeFault(fault));
    const over = new AbortController();
    const faulty = faults.map(async (fault) => {
      await sleep(fault.at * 1000, undefined, { signal: over.signal });
      await cluster.run(fault);
    });
    const working = load.run(random, RATE);
    try {
      // Ends early only when something in the test itself goes wrong.
      await Promise.race([sleep(SECONDS * 1000), working, ...faulty.map(rejection)]);
    } finally {
      over.abort();
      load.stop();
      await cluster.heal();
    }
    await Promise.all([working, Promise.allSettled(faulty)]);

    const begun = performance.now();
    const differences = await converge(world, load.acknowledged, HEALED_WITHIN_MS);
    const took = ((performance.now() - begun) / 1000).toFixed(1);
    t.diagnostic(
      `${load.acknowledged.length} events acknowledged; requests: ${JSON.stringify(load.counts)}; ` +
        `${faults.length} faults; ${cluster.connections} connections; ${differences.length} differences after ${took} s`,
    );
    assert.ok(cluster.connections > 0, 'servers do not go by the links');
    for (const server of cluster.servers) assert.ok(server.isRunning, `${server.label} has ended by itself`);
    assert.deepEqual(differences, []);
    assert.deepEqual(load.failures, []);
  });
});

function rejection(work: Promise<void>): Promise<never> {
  return work.then(() => new Promise(() => {}));
}
