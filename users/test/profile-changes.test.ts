import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Database } from '@trellis/storage/database.ts';
import { type PresenceChange, Stream } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { ProfileChanges } from '../profile-changes.ts';

describe('changes of profiles', () => {
  let db: Database;
  let close: () => Promise<void>;
  before(async () => {
    ({ db, close } = await testDatabase());
  });
  after(() => close());

  it('are found from memory and, after a restart, from the database', async () => {
    const woken: string[] = [];
    const stream = new Stream<PresenceChange>('presence', 0);
    const changes = new ProfileChanges({ db, stream, wake: (userId) => woken.push(userId) });
    await changes.record('@a:x', 'm.tz');
    const between = stream.current;
    await changes.record('@a:x', 'org.example.a');
    await changes.record('@b:x', 'm.tz');
    assert.deepEqual(woken, ['@a:x', '@a:x', '@b:x']);
    const later = [
      ['@a:x', new Set(['org.example.a'])],
      ['@b:x', new Set(['m.tz'])],
    ];
    assert.deepEqual([...(await changes.between(between, stream.current))], later);
    assert.equal((await changes.between(0, between)).get('@b:x'), undefined);
    const restarted = new ProfileChanges({
      db,
      stream: new Stream<PresenceChange>('presence', 1_000),
      wake: () => {},
    });
    const found = await restarted.between(between, 1_000);
    assert.deepEqual(new Map([...found].sort()), new Map(later as Array<[string, Set<string>]>));
    assert.equal((await restarted.between(1_000, 1_000)).size, 0);
  });
});
