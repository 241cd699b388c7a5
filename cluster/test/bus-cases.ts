/** What holds for a bus over whatever transport. */
import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { after, describe, test } from 'node:test';
import type { Bus, BusEvents, BusOptions, DownReason } from '../bus.ts';
import type { Json } from '../cluster.ts';
import type { ChildOptions, FromChild, ToChild } from './bus-child.ts';

/** What a process has heard. */
export class Ear implements BusEvents {
  readonly messages: { readonly from: string; readonly message: Json }[] = [];
  readonly downs: { readonly peer: string; readonly why: DownReason; readonly at: number }[] = [];

  message(from: string, message: Json): void {
    this.messages.push({ from, message });
  }
  down(peer: string, why: DownReason): void {
    this.downs.push({ peer, why, at: performance.now() });
  }
  from(peer: string): Json[] {
    return this.messages.filter(({ from }) => from === peer).map(({ message }) => message);
  }
  downOf(peer: string) {
    return this.downs.find((down) => down.peer === peer);
  }
}

export interface Ends {
  readonly bus: Bus;
  readonly ear: Ear;
}

export interface Transport {
  make(self: string, options?: Partial<BusOptions>): Bus;
  child(self: string, options?: Partial<BusOptions>): ChildOptions;
  /** How a peer's `kill -9` is seen, and how quickly. */
  readonly death: { readonly why: DownReason; readonly within: number };
}

let made = 0;

/** Buses of this process, with names of their own, closed at the end. */
export async function ends(
  transport: Transport,
  count: number,
  options?: Partial<BusOptions>,
): Promise<Ends[]> {
  const all = Array.from({ length: count }, () => ({
    bus: transport.make(`m${++made}`, options),
    ear: new Ear(),
  }));
  await Promise.all(all.map(({ bus, ear }) => bus.start(ear)));
  closing.push(...all.map(({ bus }) => bus));
  return all;
}

export interface Child {
  readonly id: string;
  readonly address: string;
  readonly process: ChildProcess;
  readonly ear: Ear;
  order(order: ToChild): void;
}

export async function startChild(transport: Transport, options?: Partial<BusOptions>): Promise<Child> {
  const id = `child${++made}`;
  const forked = fork(
    new URL('bus-child.ts', import.meta.url),
    [JSON.stringify(transport.child(id, options))],
    {
      execArgv: [],
    },
  );
  children.push(forked);
  const ear = new Ear();
  const address = await new Promise<string>((started) => {
    forked.on('message', (told: FromChild) => {
      if (told.t === 'started') started(told.address);
      else if (told.t === 'message') ear.message(told.from, told.message);
      else if (told.t === 'down') ear.down(told.peer, told.why);
    });
  });
  return { id, address, process: forked, ear, order: (order) => void forked.send(order) };
}

const closing: Bus[] = [];
const children: ChildProcess[] = [];

export async function closeAll(): Promise<void> {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  await Promise.all(closing.splice(0).map((bus) => bus.close()));
}

export async function until(what: string, is: () => unknown, ms = 10_000): Promise<void> {
  for (const end = performance.now() + ms; !is(); await pause(5))
    if (performance.now() > end) assert.fail(`not within ${ms} ms: ${what}`);
}

export function pause(ms: number): Promise<void> {
  return new Promise((over) => setTimeout(over, ms));
}

export function turn(): Promise<void> {
  return new Promise((over) => setImmediate(over));
}

export function range(count: number): number[] {
  return Array.from({ length: count }, (_, n) => n);
}

/** Connected with a child, which has answered. */
async function withChild(transport: Transport, options: Partial<BusOptions>, other: Ends): Promise<Child> {
  const child = await startChild(transport, options);
  other.bus.connect(child);
  other.bus.send(child.id, 'ping');
  await until('an answer', () => other.ear.from(child.id).includes('pong'));
  return child;
}

export function busCases(transport: Transport): void {
  describe('as every transport', { concurrency: false }, () => {
    after(closeAll);

    test('what is sent comes in order and once, also before the other side knows', async () => {
      const [a, b] = await ends(transport, 2);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      for (const n of range(5000)) {
        a!.bus.send(b!.bus.self, n);
        if (n === 100) await until('the first', () => b!.ear.messages.length > 0);
        if (n > 100) b!.bus.send(a!.bus.self, n);
        if (n % 7 === 0) await turn();
      }
      await until('all', () => b!.ear.messages.length >= 5000 && a!.ear.messages.length >= 4899);
      await pause(50);
      assert.deepEqual(b!.ear.from(a!.bus.self), range(5000));
      assert.deepEqual(a!.ear.from(b!.bus.self), range(5000).slice(101));
    });

    test('keys come as they were sent, whatever came before', async () => {
      const [a, b] = await ends(transport, 2);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      // V8 would read the second key as the first one (nodejs/node#63785), where it has met neither in an object before.
      const sent = ['a\\', 'a"'].map((key) => Object.assign(Object.create(null), { bus: 1 }, { [key]: 2 }));
      for (const [n, message] of sent.entries()) {
        a!.bus.send(b!.bus.self, message);
        await until('it', () => b!.ear.messages.length > n);
      }
      assert.equal(JSON.stringify(b!.ear.from(a!.bus.self)), JSON.stringify(sent));
    });

    test('many speak to each other', async () => {
      const all = await ends(transport, 8);
      for (const { bus } of all)
        for (const other of all) bus.connect({ id: other.bus.self, address: other.bus.address });
      const ids = all.map(({ bus }) => bus.self);
      for (const n of range(300)) {
        for (const { bus } of all) bus.send(ids, n);
        if (n % 10 === 9) await turn();
      }
      await until('all', () => all.every(({ ear }) => ear.messages.length >= 7 * 300));
      for (const { bus, ear } of all)
        for (const id of ids) assert.deepEqual(ear.from(id), id === bus.self ? [] : range(300));
      assert.deepEqual(
        all.flatMap(({ ear }) => ear.downs),
        [],
      );
    });

    test('messages of 5 MB keep their place among small ones', async () => {
      const [a, b] = await ends(transport, 2);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      const big = 'ü😀x'.repeat(5_000_000 / 7);
      const sent: Json[] = ['before', { big }, 'between', [big, 1], 'after'];
      for (const message of sent) a!.bus.send(b!.bus.self, message);
      await until('all', () => b!.ear.messages.length >= 5);
      assert.deepEqual(b!.ear.from(a!.bus.self), sent);
    });

    test('who closes has said everything before, and is known to have left', async () => {
      const [a, b] = await ends(transport, 2);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      for (const n of range(1000)) a!.bus.send(b!.bus.self, n);
      await a!.bus.close();
      await until('down', () => b!.ear.downs.length > 0);
      assert.deepEqual(b!.ear.from(a!.bus.self), range(1000));
      assert.deepEqual(
        b!.ear.downs.map(({ peer, why }) => [peer, why]),
        [[a!.bus.self, 'left']],
      );
      assert.deepEqual(a!.ear.downs, []);
    });

    test('who is disconnected hears of it; who did it does not', async () => {
      const [a, b] = await ends(transport, 2);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      a!.bus.send(b!.bus.self, 1);
      await until('it', () => b!.ear.messages.length > 0);
      b!.bus.send(a!.bus.self, 1);
      await until('the answer', () => a!.ear.messages.length > 0);
      a!.bus.send(b!.bus.self, 2);
      a!.bus.disconnect(b!.bus.self);
      await until('down', () => b!.ear.downs.length > 0);
      assert.deepEqual(
        b!.ear.downs.map(({ peer, why }) => [peer, why]),
        [[a!.bus.self, 'gave-us-up']],
      );
      assert.deepEqual(b!.ear.from(a!.bus.self), [1, 2]);
      a!.bus.send(b!.bus.self, 3);
      a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
      b!.bus.connect({ id: a!.bus.self, address: a!.bus.address });
      b!.bus.send(a!.bus.self, 2);
      await pause(300);
      assert.equal(b!.ear.messages.length, 2);
      assert.equal(a!.ear.messages.length, 1);
      assert.deepEqual([a!.ear.downs.length, b!.ear.downs.length], [0, 1]);
    });

    test('a process that is killed is down soon, and what came before it is whole', async () => {
      const [a] = await ends(transport, 1, { silence: 800 });
      const delays: number[] = [];
      // Where the machine is busy with something else, not every time tells how quick it is.
      for (let tries = 0; tries < 4 && !delays.some((delay) => delay < transport.death.within); tries++) {
        const child = await withChild(transport, { silence: 800 }, a!);
        child.order({ do: 'flood', to: a!.bus.self, count: 1e9, perMs: 10, text: 'x' });
        await until('traffic', () => a!.ear.from(child.id).length > 1000);
        const killed = performance.now();
        child.process.kill('SIGKILL');
        await until('down', () => a!.ear.downOf(child.id));
        const { why, at } = a!.ear.downOf(child.id)!;
        assert.equal(why, transport.death.why);
        delays.push(at - killed);
        const came = a!.ear.from(child.id).length;
        await pause(100);
        const numbers = a!.ear.from(child.id).slice(1) as { n: number }[];
        assert.equal(numbers.length, came - 1, 'nothing comes after it');
        assert.deepEqual(
          numbers.map(({ n }) => n),
          range(came - 1),
        );
        assert.equal(a!.ear.downs.filter(({ peer }) => peer === child.id).length, 1);
      }
      const best = Math.min(...delays);
      assert.ok(best < transport.death.within, `down after ${best} ms`);
    });

    test('a process that is stopped is down when the limit has passed, and learns that when it wakes', async () => {
      const silence = 800;
      const [a] = await ends(transport, 1, { silence });
      const child = await withChild(transport, { silence }, a!);
      await pause(2 * silence);
      assert.deepEqual([...a!.ear.downs, ...child.ear.downs], [], 'silence with heartbeats is none');
      const stopped = performance.now();
      child.process.kill('SIGSTOP');
      await until('down', () => a!.ear.downOf(child.id));
      const { why, at } = a!.ear.downOf(child.id)!;
      assert.equal(why, 'silent');
      assert.ok(at - stopped > silence / 2 && at - stopped < 2 * silence, `down after ${at - stopped} ms`);
      child.process.kill('SIGCONT');
      await until('its waking', () => child.ear.downOf(a!.bus.self));
      assert.equal(child.ear.downOf(a!.bus.self)!.why, 'gave-us-up');
    });

    test('a process that was stopped does not hold others for silent meanwhile', async () => {
      const [a, b] = await ends(transport, 2, { silence: 8000 });
      const child = await withChild(transport, { silence: 400 }, a!);
      b!.bus.connect(child);
      // Others with so much patience give signs of life too rarely for it.
      const traffic = setInterval(() => {
        for (const { bus } of [a!, b!]) bus.send(child.id, 'ping');
      }, 20);
      try {
        await pause(200);
        for (let i = 0; i < 3; i++) {
          child.process.kill('SIGSTOP');
          await pause(900);
          child.process.kill('SIGCONT');
          await pause(200);
        }
        child.order({ do: 'busy', ms: 900 });
        await pause(1200);
        a!.ear.messages.length = 0;
        await until('life', () => a!.ear.from(child.id).length > 0);
        assert.deepEqual([...a!.ear.downs, ...b!.ear.downs, ...child.ear.downs], []);
      } finally {
        clearInterval(traffic);
      }
    });

    test('a process that is busy for a while is not down', async () => {
      const [a] = await ends(transport, 1, { silence: 1600 });
      const child = await withChild(transport, { silence: 1600 }, a!);
      for (let i = 0; i < 3; i++) {
        child.order({ do: 'busy', ms: 1000 });
        await pause(1100);
      }
      assert.deepEqual([...a!.ear.downs, ...child.ear.downs], []);
    });

    test('who does not take in what is sent is down, before all memory is full', async () => {
      const [a] = await ends(transport, 1, { silence: 60_000, maxQueued: 20_000_000 });
      const child = await withChild(transport, {}, a!);
      child.process.kill('SIGSTOP');
      const text = 'x'.repeat(1_000_000);
      for (let n = 0; n < 60 && !a!.ear.downOf(child.id); n++) {
        a!.bus.send(child.id, text);
        await pause(1);
      }
      assert.equal(a!.ear.downOf(child.id)?.why, 'silent');
    });
  });
}
