import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Placement } from '../placement.ts';

const process = (name: string, busy: number, connections: number, isHome = false) => ({
  name,
  load: { busy, connections, isHome },
  given: 0,
});

describe('connections', () => {
  it('go to the process that has the rooms, and to others once it has enough to do', () => {
    const placement = new Placement(0.5);
    const all = [process('a', 0.1, 10), process('b', 0.3, 100, true), process('c', 0, 0)];
    assert.equal(placement.choose(all)?.name, 'b');
    all[1] = process('b', 0.6, 200, true);
    assert.equal(placement.choose(all)?.name, 'a');
    all[0] = process('a', 0.5, 200);
    assert.equal(placement.choose(all)?.name, 'c');
    all[2] = process('c', 0.8, 200);
    assert.equal(placement.choose(all)?.name, 'a', 'all have enough: who has least');
    assert.equal(placement.choose([]), undefined);
  });

  it('do not all go to one process before it can say how busy that makes it', () => {
    const placement = new Placement(0.5);
    const all = [process('a', 0, 0, true), process('b', 0, 0), process('c', 0, 0)];
    for (let i = 0; i < 2_100; i++) placement.choose(all)!.given++;
    assert.deepEqual(
      all.map(({ given }) => given),
      [1000, 1000, 100],
    );
  });

  it('go to each in turn where that is wanted', () => {
    const placement = new Placement(0);
    const all = [process('a', 0.9, 10, true), process('b', 0, 0)];
    assert.deepEqual(
      [1, 2, 3].map(() => placement.choose(all)!.name),
      ['a', 'b', 'a'],
    );
    assert.deepEqual(placement.moves(all), []);
  });

  it('are moved from who has too much to do, while somebody has little', () => {
    const placement = new Placement(0.5);
    const busy = process('a', 0.9, 100, true);
    assert.deepEqual(placement.moves([busy, process('b', 0.2, 10)]), [{ from: busy, count: 25 }]);
    assert.deepEqual(placement.moves([busy, process('b', 0.8, 100)]), []);
    assert.deepEqual(placement.moves([process('a', 0.6, 100, true), process('b', 0.2, 10)]), []);
  });

  it('are brought together again when there is less to do', () => {
    const placement = new Placement(0.5);
    const [third, fourth] = [process('c', 0.05, 6), process('d', 0.1, 9)];
    const all = [process('a', 0.2, 100), process('b', 0.3, 10, true), third, fourth];
    assert.deepEqual(placement.moves(all), [
      { from: third, count: 6 },
      { from: fourth, count: 9 },
    ]);
    assert.deepEqual(placement.moves([process('a', 0.3, 100), process('b', 0.4, 10, true)]), []);
    assert.deepEqual(placement.moves([process('a', 0.3, 100, true), process('b', 0, 0)]), []);
    const stray = process('a', 0.1, 3);
    assert.deepEqual(placement.moves([stray, process('b', 0, 0, true)]), [{ from: stray, count: 3 }]);
  });
});
