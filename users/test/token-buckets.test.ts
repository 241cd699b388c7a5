import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { TokenBuckets } from '../token-buckets.ts';

describe('token buckets', () => {
  it('let a burst through, then one at a time', () => {
    let now = 1_000_000;
    const buckets = new TokenBuckets({ perSecond: 2, burst: 3 }, { now: () => now });
    for (let i = 0; i < 3; i++) assert.equal(buckets.take('a'), 0);
    assert.equal(buckets.take('a'), 500);
    assert.equal(buckets.take('a'), 500);
    assert.equal(buckets.take('b'), 0);
    now += 499;
    assert.equal(buckets.take('a'), 1);
    now += 1;
    assert.equal(buckets.take('a'), 0);
    assert.equal(buckets.wait('a'), 500);
    now += 60_000;
    for (let i = 0; i < 3; i++) assert.equal(buckets.take('a'), 0);
    assert.ok(buckets.take('a') > 0);
  });

  it('can be without end', () => {
    const buckets = new TokenBuckets({ perSecond: Number.POSITIVE_INFINITY, burst: 1 });
    for (let i = 0; i < 1000; i++) assert.equal(buckets.take('a'), 0);
  });
});
