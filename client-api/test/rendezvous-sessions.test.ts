import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { RendezvousSessions } from '../rendezvous-sessions.ts';

describe('rendezvous sessions', () => {
  it('end after their time, however often they are changed', () => {
    let now = 1_000;
    const sessions = new RendezvousSessions({ now: () => now });
    const { id, sequence, expiresTs } = sessions.create('one');
    now = expiresTs - 1;
    assert.equal(sessions.update(id, sequence, 'two')?.expiresTs, expiresTs);
    assert.equal(sessions.get(id).data, 'two');
    now = expiresTs;
    for (const attempt of [
      () => sessions.get(id),
      () => sessions.update(id, sequence, 'x'),
      () => sessions.delete(id),
    ])
      assert.throws(attempt, { errcode: 'M_NOT_FOUND' });
  });

  it('are refused beyond their number, until others have ended', () => {
    let now = 0;
    const sessions = new RendezvousSessions({ now: () => now, max: 2 });
    const first = sessions.create('1');
    now = 10;
    const second = sessions.create('2');
    assert.throws(() => sessions.create('3'), {
      errcode: 'M_LIMIT_EXCEEDED',
      extra: { retry_after_ms: first.expiresTs - 10 },
    });
    assert.equal(sessions.get(first.id).data, '1');
    now = first.expiresTs;
    sessions.create('3');
    assert.throws(() => sessions.create('4'), { errcode: 'M_LIMIT_EXCEEDED' });
    sessions.delete(second.id);
    sessions.create('4');
  });

  it('change by who has seen the last change only', () => {
    const sessions = new RendezvousSessions();
    const { id, sequence } = sessions.create('same');
    const changed = sessions.update(id, sequence, 'same');
    assert.notEqual(changed?.sequence, sequence);
    assert.equal(sessions.update(id, sequence, 'other'), undefined);
    assert.equal(sessions.get(id).data, 'same');
  });
});
