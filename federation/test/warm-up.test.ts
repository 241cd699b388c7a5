import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { Discovery } from '../discovery.ts';
import { Backoff } from '../outbound/backoff.ts';
import { warmUp } from '../outbound/warm-up.ts';

function optionsOf(answered: string[]) {
  const backoff = new Backoff({ query: async () => [] });
  backoff.reachable = async (destination) => void answered.push(destination);
  backoff.failed = async (destination) => assert.fail(`${destination} did not answer`);
  return {
    serverName: 'here.test',
    signingKey: SigningKey.generate('test'),
    discovery: new Discovery({ fetch: () => Promise.reject(new Error('no well-known')) }),
    backoff,
    userAgent: 'test',
  };
}

test('the first requests go to the server itself', async () => {
  const answered: string[] = [];
  const stop = warmUp(optionsOf(answered));
  await new Promise((resolve) => setTimeout(resolve, 1500));
  await stop();
  assert.ok(answered.length > 1);
  for (const destination of answered) assert.match(destination, /^127\.0\.0\.1:\d+$/);
});

test('a server that stops before makes none', async () => {
  const answered: string[] = [];
  await warmUp(optionsOf(answered))();
  assert.deepEqual(answered, []);
});
