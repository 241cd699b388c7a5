import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Database } from '@trellis/storage/database.ts';
import { Stream, type StreamGap } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { ROLES } from '../cluster.ts';
import { type ClusterMember, joinCluster, memberId } from '../member.ts';
import { Hub } from './hub.ts';

const SILENT = { info() {}, warn() {}, error() {} };
const PER_TERM = 1_000_000;
const seed = Number(process.env.TRELLIS_SEED ?? Date.now() % 1_000_000);

/** A repeatable source of chance. */
function random(start: number) {
  let state = start >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

describe('a cluster', () => {
  let db: Database;
  let close: () => Promise<void>;
  before(async () => {
    ({ db, close } = await testDatabase());
    await db.query('CREATE TABLE facts (pos bigint PRIMARY KEY, text text NOT NULL)');
  });
  after(() => close());

  let hub: Hub;
  /** A process: its member, its stream, and a reader that has seen everything once and in order. */
  class Process {
    readonly id = memberId();
    dead = false;
    member!: ClusterMember;
    stream!: Stream<string>;
    readonly seen = new Map<number, string>();
    last = 0;
    gaps = 0;
    disorder: string[] = [];
    reading: Promise<void> = Promise.resolve();

    async start(): Promise<this> {
      this.member = await joinCluster({
        bus: hub.bus(this.id),
        // A dead process asks nothing.
        db: { query: (sql, params) => (this.dead ? new Promise(() => {}) : db.query(sql, params)) },
        roles: ROLES,
        processesPerHome: 1,
        log: SILENT,
        starts: async () => {
          const [row] = await db.query<{ start: number }>(
            'UPDATE stream_positions SET next_start = next_start + $1 WHERE stream = $2 RETURNING next_start - $1 AS start',
            [PER_TERM, 'facts'],
          );
          return new Map([['facts', row!.start]]);
        },
      });
      this.stream = new Stream<string>('facts', this.member.position('facts'), {
        sequencer: this.member.sequencer,
      });
      this.last = this.stream.current;
      this.stream.subscribe(
        (pos, text) => this.#see(pos, text),
        (gap) => this.#read(gap),
      );
      this.member.attach(this.stream);
      await this.member.ready();
      return this;
    }

    kill(): void {
      this.dead = true;
      hub.kill(this.id);
    }

    #see(pos: number, text: string): void {
      if (pos <= this.last) this.disorder.push(`${pos} after ${this.last}`);
      this.last = pos;
      this.seen.set(pos, text);
    }

    /** What was not announced is in the database. */
    #read({ from, to }: StreamGap): void {
      this.gaps++;
      this.last = Math.max(this.last, to);
      this.reading = this.reading.then(async () => {
        const rows = await db.query<{ pos: number; text: string }>(
          'SELECT pos, text FROM facts WHERE pos > $1 AND pos <= $2',
          [from, to],
        );
        for (const { pos, text } of rows) this.seen.set(pos, text);
      });
    }

    /** Stores as the event writer does: not without being a member. */
    write(text: string, wait = 0): Promise<void> {
      return this.stream.write([text], async (pos) => {
        await new Promise((later) => setTimeout(later, wait));
        await db.transaction(async (tx) => {
          const rows = await tx.query('SELECT 1 FROM cluster_members WHERE id = $1 AND term = $2 FOR SHARE', [
            this.id,
            this.member.term(),
          ]);
          if (rows.length === 0) throw new Error('fenced');
          await tx.query('INSERT INTO facts VALUES ($1, $2)', [pos, text]);
        });
      });
    }
  }

  async function processes(n: number, latency?: () => number): Promise<Process[]> {
    hub = new Hub(latency);
    await db.query('DELETE FROM facts');
    await db.query('DELETE FROM cluster_members');
    await db.query(`UPDATE cluster_coordinator SET until = '-infinity'`);
    await db.query(`INSERT INTO stream_positions VALUES ('facts', 1000) ON CONFLICT DO NOTHING`);
    return Promise.all(Array.from({ length: n }, () => new Process().start()));
  }

  async function end(all: readonly Process[]): Promise<void> {
    for (const { member } of all) await member.leave();
  }

  it('gives positions to all, announces in one order, and has told all once a write is done', async () => {
    const all = await processes(3, () => Math.random() * 3);
    await Promise.all(
      Array.from({ length: 60 }, async (_, i) => {
        const writer = all[i % 3]!;
        await writer.write(`fact ${i}`, Math.random() * 10);
        for (const { seen } of all) assert.ok([...seen.values()].includes(`fact ${i}`));
      }),
    );
    for (const { seen, disorder } of all) {
      assert.deepEqual(disorder, []);
      assert.deepEqual([...seen], [...all[0]!.seen]);
      assert.equal(seen.size, 60);
    }
    await end(all);
  });

  it('lets those rest whom nobody asks, and has told them all before they begin anything', async () => {
    const all = await processes(4, () => Math.random());
    const rest = () => {
      // Not before a while without any activity.
      for (const { member } of all) for (let i = 0; i < 2; i++) member.rest();
    };
    let late = 0;
    for (let i = 0; i < 60; i++) {
      rest();
      const text = `fact ${i}`;
      await all[i % 3]!.write(text);
      const has = ({ seen }: Process) => [...seen.values()].includes(text);
      late += all.filter((process) => !has(process)).length;
      const asked = all[(i + 1) % 4]!;
      await new Promise<void>((begin) => asked.member.abreast(begin));
      assert.ok(has(asked));
    }
    assert.ok(late >= 60, `${late} were told later`);
    rest();
    await all[0]!.write('the last');
    for (let i = 0; i < 50 && !all.every(({ seen }) => seen.size === 61); i++)
      await new Promise((later) => setTimeout(later, 10));
    for (const { seen, disorder } of all) {
      assert.deepEqual(disorder, []);
      assert.deepEqual([...seen], [...all[0]!.seen]);
      assert.equal(seen.size, 61);
    }
    // Whoever rests takes part when others go.
    rest();
    for (const { member } of all) await member.leave();
  });

  it('tells topics in the same order, and calls the one that has the duty', async () => {
    const all = await processes(3);
    const heard = all.map(() => [] as unknown[]);
    all.forEach(({ member }, i) => {
      member.onAnnounce('topic', (payload) => heard[i]!.push(payload));
      member.serve('who', (args, key) => [member.self, key, args]);
    });
    await Promise.all(all.map(({ member }, i) => member.announce('topic', i)));
    assert.equal(heard[0]!.length, 3);
    assert.deepEqual(heard[1], heard[0]);
    assert.deepEqual(heard[2], heard[0]);
    const owners = new Set<string>();
    for (let i = 0; i < 30; i++) {
      const key = `!room${i}:here`;
      const [by, asked, args] = (await all[i % 3]!.member.call('room', key, 'who', { i })) as [
        string,
        string,
        object,
      ];
      assert.equal(asked, key);
      assert.deepEqual(args, { i });
      owners.add(by);
      assert.deepEqual(
        all.filter(({ member }) => member.owns('room', key)).map(({ id }) => id),
        [by],
      );
    }
    assert.equal(owners.size, 3);
    await end(all);
  });

  it('shuts out who died in the middle: readers find in the database what was not announced', async () => {
    const all = await processes(3);
    const [first] = await db.query<{ holder: string }>('SELECT holder FROM cluster_coordinator');
    const dying = all.find(({ id }) => id !== first!.holder)!;
    const others = all.filter((each) => each !== dying);
    // Committed, and killed before it could say so.
    const pos = await dying.stream.reserve();
    await db.query('INSERT INTO facts VALUES ($1, $2)', [pos, 'orphan']);
    const later = others[0]!.write('after it');
    dying.kill();
    await later;
    for (const each of others) {
      await each.reading;
      assert.equal(each.seen.get(pos), 'orphan');
      assert.ok([...each.seen.values()].includes('after it'));
    }
    await assert.rejects(
      db.transaction(async (tx) => {
        const rows = await tx.query('SELECT 1 FROM cluster_members WHERE id = $1 FOR SHARE', [dying.id]);
        assert.equal(rows.length, 1, 'fenced');
      }),
      /fenced/,
    );
    await end(others);
  });

  it('goes on without its coordinator', async () => {
    const all = await processes(3);
    const [row] = await db.query<{ holder: string; term: number }>(
      'SELECT holder, term FROM cluster_coordinator',
    );
    const others = all.filter(({ id }) => id !== row!.holder);
    const guard = others[0]!.stream.guard();
    await db.transaction(guard);
    const at = Date.now();
    all.find(({ id }) => id === row!.holder)!.kill();
    await others[0]!.write('still here');
    assert.ok(Date.now() - at < 5_000, `${Date.now() - at} ms`);
    // Positions that the one before gave are void, and nothing can be stored there any more.
    await assert.rejects(db.transaction(guard), /shut out/);
    await db.transaction(others[0]!.stream.guard());
    for (const { seen } of others) assert.ok([...seen.values()].includes('still here'));
    await others[1]!.member.call('room', 'x', 'nothing', {}).catch(() => {});
    for (const end = Date.now() + 2_000; ; ) {
      if (others.filter(({ member }) => member.owns('room', 'any')).length === 1) break;
      assert.ok(Date.now() < end, 'its duties are taken up');
      await new Promise((later) => setTimeout(later, 20));
    }
    await end(others);
  });

  it('lets processes go and come without a failed write', async () => {
    let all = await processes(3, () => Math.random());
    let failed = 0;
    let written = 0;
    let going = true;
    const leaving = new Set<Process>();
    const work = new Map<Process, Set<Promise<unknown>>>();
    const writers = Array.from({ length: 12 }, async (_, i) => {
      while (going) {
        const able = all.filter((each) => !leaving.has(each));
        const writer = able[i % able.length]!;
        const writing = writer.write(`w${i} ${written}`, Math.random() * 3).then(
          () => written++,
          (error) => {
            failed++;
            console.error(error);
          },
        );
        work.get(writer)?.add(writing) ?? work.set(writer, new Set([writing]));
        await writing;
        work.get(writer)!.delete(writing);
        await new Promise((later) => setTimeout(later, 1));
      }
    });
    for (let i = 0; i < 4; i++) {
      await new Promise((later) => setTimeout(later, 100));
      const old = all[0]!;
      all = [...all, await new Process().start()];
      leaving.add(old);
      await Promise.all(work.get(old) ?? []);
      await old.member.leave();
      all = all.filter((each) => each !== old);
    }
    going = false;
    await Promise.all(writers);
    assert.equal(failed, 0);
    assert.ok(written > 50);
    await end(all);
  });

  it(`lets no reader skip or repeat, whoever comes, goes or dies (seed ${seed})`, async () => {
    const chance = random(seed);
    let all = await processes(3, () => chance() * 4);
    const acknowledged = new Set<string>();
    const everyone = new Set(all);
    let going = true;
    let n = 0;
    const alive = () => all.filter(({ member }) => member);
    const writers = Array.from({ length: 8 }, async () => {
      while (going) {
        const able = alive();
        const writer = able[Math.floor(chance() * able.length)]!;
        const text = `fact ${n++}`;
        const late = new Promise<'late'>((done) => setTimeout(done, 4_000, 'late'));
        const outcome = await Promise.race([
          writer.write(text, chance() * 8).then(
            () => 'done' as const,
            () => 'failed' as const,
          ),
          late,
        ]);
        if (outcome === 'done') acknowledged.add(text);
      }
    });
    for (let i = 0; i < 8; i++) {
      await new Promise((later) => setTimeout(later, 150 + chance() * 300));
      const which = chance();
      if (which < 0.4 && all.length > 2) {
        const dead = all[Math.floor(chance() * all.length)]!;
        all = all.filter((each) => each !== dead);
        everyone.delete(dead);
        dead.kill();
      } else if (which < 0.6 && all.length > 2) {
        const gone = all[Math.floor(chance() * all.length)]!;
        all = all.filter((each) => each !== gone);
        everyone.delete(gone);
        await gone.member.leave();
      } else {
        const fresh = await new Process().start();
        all = [...all, fresh];
        everyone.add(fresh);
      }
    }
    await new Promise((later) => setTimeout(later, 500));
    going = false;
    await Promise.all(writers);
    // One more, so that all before it is announced.
    await all[0]!.write('last');
    const stored = await db.query<{ pos: number; text: string }>('SELECT pos, text FROM facts ORDER BY pos');
    const texts = new Set(stored.map(({ text }) => text));
    for (const text of acknowledged) assert.ok(texts.has(text), `${text} was acknowledged and is gone`);
    for (const each of everyone) {
      await each.reading;
      assert.deepEqual(each.disorder, []);
      const first = Math.min(...each.seen.keys());
      for (const { pos, text } of stored)
        if (pos >= first) assert.equal(each.seen.get(pos), text, `position ${pos} was skipped`);
    }
    assert.ok(acknowledged.size > 50, `${acknowledged.size} acknowledged`);
    await end(all);
  });
});
