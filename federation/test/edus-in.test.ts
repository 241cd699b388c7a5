import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonValue } from '@trellis/protocol/event.ts';
import { DatabaseAwayError } from '@trellis/storage/unavailable.ts';
import { allowedServers } from '../allowed-servers.ts';
import { type EduHandler, eduDispatcher } from '../inbound/edus.ts';

test('EDUs are handled in order; one that fails does not keep the next, and 100 are enough', async () => {
  const seen: unknown[] = [];
  const warned: unknown[] = [];
  const handler: EduHandler = async (origin, content) => {
    if (content.fail) throw new Error('bad');
    seen.push([origin, content.n]);
  };
  const handle = eduDispatcher(new Map([['m.known', handler]]), { warn: (what) => warned.push(what) });
  const edu = (n: number, more: object = {}) =>
    ({ edu_type: 'm.known', content: { n, ...more } }) as JsonValue;
  await handle('far.test', [
    edu(1),
    edu(2, { fail: true }),
    { edu_type: 'm.unknown', content: { n: 3 } },
    { edu_type: 'm.known' },
    { edu_type: 5, content: {} },
    null,
    'edu',
    { edu_type: 'constructor', content: {} },
    edu(4),
  ]);
  assert.deepEqual(seen, [
    ['far.test', 1],
    ['far.test', 4],
  ]);
  assert.equal(warned.length, 1);
  await handle('far.test', undefined);
  await handle('far.test', {});
  seen.length = 0;
  await handle(
    'far.test',
    Array.from({ length: 150 }, (_, n) => edu(n)),
  );
  assert.equal(seen.length, 100);
});

test('EDUs that cannot be handled while the database is away fail the transaction, so that they come again', async () => {
  const away = new DatabaseAwayError(new Error('ECONNREFUSED'));
  const handle = eduDispatcher(new Map([['m.known', () => Promise.reject(away)]]), { warn: () => {} });
  await assert.rejects(handle('far.test', [{ edu_type: 'm.known', content: {} }]), away);
});

test('servers are allowed and denied by name, whatever their port or letter case', () => {
  const all = allowedServers({});
  assert.ok(all('a.test') && all('b.test:1'));
  const some = allowedServers({ allow: ['*.good.test', '10.0.0.?'], deny: ['bad.*'] });
  for (const name of ['a.good.test', 'A.GOOD.TEST:8448', '10.0.0.7:1']) assert.ok(some(name), name);
  for (const name of ['good.test', 'bad.good.test', 'other.test', '10.0.0.77', ''])
    assert.ok(!some(name), name);
  const not = allowedServers({ deny: ['*.spam.test'] });
  assert.ok(not('a.test') && !not('x.spam.test:99'));
});
