import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Slots } from '../slots.ts';

test('no more run at a time than there is room for, each has its turn, failures free their place', async () => {
  const slots = new Slots(2);
  let running = 0;
  let most = 0;
  const begun: number[] = [];
  const task = (n: number) => () =>
    (async () => {
      begun.push(n);
      most = Math.max(most, ++running);
      await delay(2);
      running--;
      if (n % 2) throw new Error('odd');
      return n;
    })();
  const outcomes = await Promise.allSettled([0, 1, 2, 3, 4, 5, 6].map((n) => slots.run(task(n))));
  assert.equal(most, 2);
  assert.deepEqual(begun, [0, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual(
    outcomes.map((outcome) => (outcome.status === 'fulfilled' ? outcome.value : outcome.reason.message)),
    [0, 'odd', 2, 'odd', 4, 'odd', 6],
  );
  assert.equal(await slots.run(async () => 'again'), 'again');
});
