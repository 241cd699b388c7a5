import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KIND, Link, type Packet, PIECE } from '../link.ts';

/** mulberry32: the same numbers for the same seed. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Fate {
  readonly lost: number;
  readonly doubled: number;
  readonly late: number;
}

/** Two links over a channel that treats packets badly. */
function linked(fate: Fate, next: () => number) {
  const heard: [string[], string[]] = [[], []];
  const ends: boolean[] = [false, false];
  let packets = 0;
  const links = [0, 1].map(
    (side) =>
      new Link({
        transmit(packet: Packet) {
          packets += 1;
          const arrives = () => links[1 - side]!.received(packet);
          if (next() < fate.lost) return;
          if (next() < fate.late) setTimeout(arrives, next() * 20);
          else setImmediate(arrives);
          if (next() < fate.doubled) setImmediate(arrives);
        },
        deliver(text) {
          if (text === undefined) ends[side] = true;
          else heard[side]!.push(text);
        },
      }),
  ) as [Link, Link];
  return { links, heard, ends, packets: () => packets };
}

const seed = Number(process.env.TRELLIS_LINK_SEED ?? Date.now() % 1e9);

test(`pieces arrive in order and once whatever the channel does (seed ${seed})`, async () => {
  const next = random(seed);
  const { links, heard, ends } = linked({ lost: 0.1, doubled: 0.1, late: 0.1 }, next);
  for (const link of links) link.opened();
  const sent: [string[], string[]] = [[], []];
  for (let round = 0; round < 100; round++) {
    for (const side of [0, 1]) {
      for (let i = 0; i < next() * 4; i++) {
        const length = next() < 0.02 ? PIECE * 3 * next() : next() * 100;
        const text = `${sent[side]!.length} ${'é'.repeat(length)}`;
        sent[side]!.push(text);
        links[side]!.push(text);
      }
    }
    if (next() < 0.05) {
      // One side is cut off, and back.
      const cut = links[next() < 0.5 ? 0 : 1]!;
      cut.shut();
      setTimeout(() => cut.opened(), next() * 50);
    }
    await new Promise((passed) => setTimeout(passed, next() * 3));
  }
  await Promise.all(links.map((link) => link.bye()));
  assert.ok(heard[1].every((text, i) => text === sent[0][i]) && heard[1].length === sent[0].length);
  assert.ok(heard[0].every((text, i) => text === sent[1][i]) && heard[0].length === sent[1].length);
  assert.deepEqual(ends, [true, true]);
  assert.deepEqual(
    links.map(({ bytes }) => bytes),
    [0, 0],
  );
  for (const link of links) link.end();
});

test('a lost piece is repeated by itself, and only what is needed goes over a good channel', async () => {
  const { links, heard, packets } = linked({ lost: 0, doubled: 0, late: 0 }, () => 1);
  for (const link of links) link.opened();
  for (let n = 0; n < 1000; n++) links[0].push(String(n));
  await links[0].bye();
  assert.equal(heard[1].length, 1000);
  assert.ok(packets() < 1000 + 100, `${packets()} packets`);
  for (const link of links) link.end();

  let dropped = 0;
  const lossy = linked({ lost: 0.5, doubled: 0, late: 0 }, () => (dropped++ === 6 ? 0 : 1));
  for (const link of lossy.links) link.opened();
  const began = performance.now();
  lossy.links[0].push('only one');
  await lossy.links[0].bye();
  assert.deepEqual(lossy.heard[1], ['only one']);
  assert.ok(performance.now() - began < 500);
  for (const link of lossy.links) link.end();
});

test('what was received is not received again', () => {
  const got: (string | undefined)[] = [];
  const link = new Link({ transmit() {}, deliver: (text) => void got.push(text) });
  const packet = (counter: number, seq: number): Packet => ({
    counter,
    seq,
    kind: KIND.messages,
    expects: 1,
    heard: 0,
    again: false,
    body: Buffer.from(`${seq}`),
  });
  for (const [counter, seq] of [
    [1, 1],
    [1, 1],
    [2, 3],
    [3, 2],
    [3, 3],
    [2, 3],
    [4, 2],
    [5, 3],
  ] as const)
    link.received(packet(counter, seq));
  assert.deepEqual(got, ['1', '2', '3']);
  link.end();
});
