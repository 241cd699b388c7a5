import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { readLists } from '../outbound/list-stream.ts';

async function* pieces(text: string, size: number): AsyncGenerator<Uint8Array> {
  const bytes = Buffer.from(text);
  for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
}

async function read(text: string, size: number) {
  const lists: Record<string, JsonObject[]> = {};
  const rest = await readLists(pieces(text, size), ['pdus', 'auth_chain'], async (items, name) => {
    lists[name] = [...(lists[name] ?? []), ...items];
  });
  return { lists, rest };
}

const TRICKY = {
  before: 'a "pdus":[ in a string \\',
  pdus: [
    { text: '}]"\\', inner: [{ pdus: [{}] }, []] },
    { smile: '😀 é', empty: {} },
  ],
  between: { auth_chain: [{ not: 'this' }], list: [1, [2]] },
  auth_chain: [{ n: 1 }],
  flag: true,
};

test('lists are read as they come, however they are cut', async () => {
  const whole = JSON.stringify(TRICKY);
  const spaced = JSON.stringify(TRICKY, null, 2);
  for (const text of [whole, spaced])
    for (const size of [1, 2, 3, 7, 64, 10_000]) {
      const { lists, rest } = await read(text, size);
      assert.deepEqual(lists, { pdus: TRICKY.pdus, auth_chain: TRICKY.auth_chain });
      assert.deepEqual(rest, { ...TRICKY, pdus: [], auth_chain: [] });
    }
});

test('what is no object in a list is left out; a long list comes in batches', async () => {
  const { lists } = await read('{"pdus":[1,"{",null,[{"a":1}],{"b":2}]}', 4);
  assert.deepEqual(lists.pdus?.at(-1), { b: 2 });
  assert.equal(lists.pdus?.length, 1);
  const sizes: number[] = [];
  const long = JSON.stringify({ pdus: Array.from({ length: 1200 }, (_, n) => ({ n })) });
  await readLists(pieces(long, 1000), ['pdus'], async (items) => void sizes.push(items.length));
  assert.deepEqual(sizes, [400, 400, 400]);
});

test('what is cut off, no JSON or too large is refused', async () => {
  for (const text of [
    '',
    '[]',
    '{"pdus":[{"a":1}',
    '{"pdus":[{"a":1}]',
    '{"pdus":[{a:1}]}',
    '{"pdus":[]]',
    '"x"',
  ])
    await assert.rejects(read(text, 5), text);
  await assert.rejects(read(`{"pdus":[{"a":"${'x'.repeat(1024 * 1024 + 10)}"}]}`, 65_536));
});
