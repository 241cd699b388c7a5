import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PusherQueue } from '../pusher-queue.ts';
import type { PusherRow } from '../pusher-table.ts';

const row = (pos: number): PusherRow => ({
  userId: '@alice:here.test',
  appId: 'app',
  pushkey: 'key',
  createdTs: 0,
  kind: 'http',
  lang: 'en',
  data: {},
  pos,
  dueTs: null,
  failingSinceTs: null,
  failures: 0,
  mails: 0,
  mailedTs: null,
});

test('what is found again while it is being told is not told twice', () => {
  const queue = new PusherQueue(row(10));
  queue.add('!room', 10);
  assert.deepEqual([...queue.take()], [['!room', 10]]);
  // Another process has given something up, and what came after that is looked for.
  queue.add('!room', 5);
  queue.row.pos = 12;
  queue.delivered();
  assert.deepEqual([...queue.take()], [['!room', 12]]);
});
