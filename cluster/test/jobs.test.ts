import assert from 'node:assert/strict';
import { after, afterEach, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { alone } from '../cluster.ts';
import { type Jobs, sweep } from '../jobs.ts';
import { BullJobs } from '../jobs-bullmq.ts';
import { LocalJobs } from '../jobs-local.ts';
import { redisProgram, startRedis, type TestRedis } from '../testing-redis.ts';

const quiet = { warn: () => {} };
const program = await redisProgram();

async function until(what: string, condition: () => unknown, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await condition())) {
    assert.ok(performance.now() < end, `waited in vain for ${what}`);
    await sleep(20);
  }
}

describe('jobs of a process that is alone', () => {
  it('are done a few at a time, again when they fail, once under an id', async () => {
    const jobs = new LocalJobs(quiet);
    let [running, most, done, tries] = [0, 0, 0, 0];
    jobs.handle(
      'work',
      async () => {
        most = Math.max(most, ++running);
        await sleep(10);
        running--;
        done++;
        return undefined;
      },
      { concurrency: 2 },
    );
    jobs.handle('trying', async () => {
      if (++tries < 2) throw new Error('not yet');
      return undefined;
    });
    await Promise.all([1, 2, 3, 4, 5].map((i) => jobs.run('work', i)));
    assert.deepEqual([most, done], [2, 5]);
    await Promise.all([jobs.run('work', 1, { id: 'a' }), jobs.run('work', 1, { id: 'a' })]);
    assert.equal(done, 6);
    await assert.rejects(jobs.run('trying', null), /not yet/);
    tries = 0;
    await jobs.add('trying', null, { attempts: 3 });
    await until('the second try', () => tries === 2);
    await jobs.close();
  });
});

describe('jobs through Redis', { skip: program ? false : 'no redis-server' }, () => {
  let redis: TestRedis;
  const open: Jobs[] = [];
  before(async () => {
    redis = await startRedis();
  });
  after(() => redis?.close());
  afterEach(async () => {
    for (const jobs of open.splice(0)) await jobs.close();
  });

  /** One that works and one that only has it done. */
  async function pair(name: string, handler: (who: string, data: number) => Promise<undefined>) {
    const processes = [true, false].map((works) => {
      const jobs = new BullJobs({
        redis: { url: redis.url },
        installation: 'here',
        works,
        patienceMs: 5_000,
        log: quiet,
      });
      jobs.handle(name, (data: number) => handler(works ? 'worker' : 'other', data));
      open.push(jobs);
      return jobs;
    });
    for (const jobs of processes) await jobs.start();
    return processes as [BullJobs, BullJobs];
  }

  it('are done by a process that works, for one that waits', async () => {
    const done: string[] = [];
    const [, other] = await pair('plain', async (who, data) => void done.push(`${who} ${data}`));
    await other.run('plain', 1);
    await other.add('plain', 2, { delayMs: 100 });
    await until('the second', () => done.length === 2);
    assert.deepEqual(done, ['worker 1', 'worker 2']);
  });

  it('are done here when they fail there, and say what was wrong', async () => {
    const done: string[] = [];
    const [, other] = await pair('failing', async (who) => {
      done.push(who);
      throw new Error(`${who} cannot`);
    });
    await assert.rejects(other.run('failing', 1), /other cannot/);
    assert.deepEqual(done, ['worker', 'other']);
  });

  it('are one under an id', async () => {
    let count = 0;
    const [, other] = await pair('single', async () => {
      count++;
      await sleep(100);
      return undefined;
    });
    await Promise.all([1, 2, 3].map((i) => other.run('single', i, { id: 'a:b' })));
    assert.equal(count, 1);
  });

  it('that somebody waits for are done although Redis forgets them, or is not there', async () => {
    const done: string[] = [];
    const [worker, other] = await pair('lost', async (who, data) => {
      if (who === 'worker' && data === 1) await sleep(3_000);
      done.push(`${who} ${data}`);
      return undefined;
    });
    await other.run('lost', 0);
    const waiting = other.run('lost', 1);
    await sleep(300);
    await redis.cli('flushall');
    await waiting;
    assert.deepEqual(done.slice(0, 2), ['worker 0', 'other 1']);
    await worker.run('lost', 2);
    await redis.kill();
    await other.run('lost', 3);
    assert.equal(done.at(-1), 'other 3');
    await redis.restart();
    await until(
      'the worker',
      async () => {
        await other.run('lost', 4);
        return done.includes('worker 4');
      },
      15_000,
    );
  });

  it('that must be done are found in the database after Redis has lost them', async () => {
    const outstanding = new Set(Array.from({ length: 30 }, (_, i) => i));
    const [, other] = await pair('must', async (_who, data) => {
      await sleep(30);
      outstanding.delete(data);
      return undefined;
    });
    const end = sweep(
      { cluster: alone(), jobs: other, log: quiet },
      {
        name: 'must',
        intervalMs: 300,
        find: async () => [...outstanding].map((data) => ({ id: String(data), data })),
      },
    );
    await until('a part', () => outstanding.size < 25);
    await redis.cli('flushall');
    await until('the rest', () => outstanding.size === 0);
    end();
  });
});
