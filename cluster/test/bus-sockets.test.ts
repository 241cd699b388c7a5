import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { BusOptions } from '../bus.ts';
import { SocketBus, type SocketBusOptions } from '../bus-sockets.ts';
import { busCases, closeAll, Ear, ends, startChild, type Transport, until } from './bus-cases.ts';
import type { FromChild } from './bus-child.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'trellis-bus-'));
});
after(() => rm(folder, { recursive: true, force: true }));

const options = (self: string, more: Partial<BusOptions> = {}): SocketBusOptions => ({
  self,
  folder: join(folder, 'run'),
  secret: 'between us',
  ...more,
});
const transport: Transport = {
  make: (self, more) => new SocketBus(options(self, more)),
  child: (self, more) => ({ transport: 'sockets', options: options(self, more) }),
  death: { why: 'died', within: 100 },
};

describe('a bus over sockets', { concurrency: false }, () => {
  busCases(transport);
  after(closeAll);

  test('who does not know the secret is refused on both sides', async () => {
    const [a] = await ends(transport, 1);
    const [stranger] = await ends(transport, 1, { secret: 'something else' });
    stranger!.bus.connect({ id: a!.bus.self, address: a!.bus.address });
    stranger!.bus.send(a!.bus.self, 'let me in');
    await until('down', () => stranger!.ear.downs.length > 0);
    a!.bus.connect({ id: stranger!.bus.self, address: stranger!.bus.address });
    a!.bus.send(stranger!.bus.self, 'a secret');
    await until('down', () => a!.ear.downs.length > 0);
    assert.deepEqual([stranger!.ear.downs[0]!.why, a!.ear.downs[0]!.why], ['refused', 'refused']);
    assert.deepEqual([...a!.ear.messages, ...stranger!.ear.messages], []);
  });

  test('who nobody listens for is down at once', async () => {
    const [a] = await ends(transport, 1);
    a!.bus.connect({ id: 'nobody', address: join(dirname(a!.bus.address), 'nothing.sock') });
    await until('down', () => a!.ear.downOf('nobody')?.why === 'died', 100);
  });

  test('what is no handshake ends its connection only', async () => {
    const [a, b] = await ends(transport, 2);
    for (const bytes of [
      Buffer.alloc(100_000, 0xff),
      Buffer.from([2, 0, 0, 0, 1, 0x7b, 0x7d]),
      Buffer.alloc(5),
    ]) {
      const socket = connect(a!.bus.address);
      socket.on('error', () => {});
      socket.write(bytes);
      await new Promise((closed) => socket.on('close', closed));
    }
    b!.bus.connect({ id: a!.bus.self, address: a!.bus.address });
    b!.bus.send(a!.bus.self, 'still there?');
    await until('it', () => a!.ear.messages.length === 1);
    assert.deepEqual(a!.ear.downs, []);
  });

  test('what was handed over is known before anything that comes later', async () => {
    const [a] = await ends(transport, 1);
    const child = await startChild(transport);
    a!.bus.connect({ id: child.id, address: child.address });
    const path = join(folder, 'answers');
    child.order({ do: 'answer', path });
    await new Promise<void>((answering) =>
      child.process.on('message', (told: FromChild) => told.t === 'answering' && answering()),
    );
    const asking = connect(path);
    for (let n = 0; n < 1_000; n++) {
      // Some are longer than what a socket holds.
      const text = 'x'.repeat(n % 50 === 0 ? 1_000_000 : n);
      a!.bus.send(child.id, { n, text });
      await new Promise<void>((handed) => a!.bus.handedOver!([child.id], handed));
      asking.write('?');
      const [answer] = (await once(asking, 'data')) as [Buffer];
      assert.equal(Number(answer.toString()), n);
    }
    asking.destroy();
  });

  test('what is handed over waits for who does not take it in, but not for the dead', async () => {
    const [a] = await ends(transport, 1, { silence: 60_000 });
    const child = await startChild(transport);
    a!.bus.connect({ id: child.id, address: child.address });
    a!.bus.send(child.id, { n: 0 });
    await new Promise<void>((handed) => a!.bus.handedOver!([child.id], handed));
    child.process.kill('SIGSTOP');
    const order: number[] = [];
    for (let n = 1; n <= 3; n++) {
      a!.bus.send(child.id, { n, text: 'x'.repeat(2_000_000) });
      a!.bus.handedOver!([child.id], () => order.push(n));
    }
    a!.bus.handedOver!([], () => order.push(4));
    await new Promise((later) => setTimeout(later, 100));
    assert.deepEqual(order, []);
    child.process.kill('SIGKILL');
    await until('its end', () => order.length === 4);
    assert.deepEqual(order, [1, 2, 3, 4]);
  });

  test('others cannot enter the folder, however long its name is; sockets of the dead are removed', async () => {
    const child = await startChild(transport);
    child.process.kill('SIGKILL');
    await until('its end', () => child.process.signalCode);
    // Where another one is just about to listen nobody answers either.
    const young = await startChild(transport);
    young.process.kill('SIGKILL');
    await until('its end', () => young.process.signalCode);
    await utimes(child.address, 0, 0);
    const long = join(folder, 'x'.repeat(120));
    const used: string[] = [];
    for (const where of [join(folder, 'run'), long]) {
      const bus = new SocketBus({ ...options('one'), folder: where });
      await bus.start(new Ear());
      const parent = dirname(bus.address);
      assert.equal((await stat(parent)).mode & 0o777, 0o700);
      assert.ok(Buffer.byteLength(bus.address) <= 107);
      used.push(parent);
      await bus.close();
      await assert.rejects(stat(bus.address), { code: 'ENOENT' });
    }
    assert.equal(used[0], join(folder, 'run'));
    await assert.rejects(stat(child.address), { code: 'ENOENT' });
    await stat(young.address);
    await rm(used[1]!, { recursive: true });
    await writeFile(join(folder, 'file'), '');
    await assert.rejects(new SocketBus({ ...options('one'), folder: join(folder, 'file') }).start(new Ear()));
    assert.ok((await readdir(folder)).includes('run'));
  });
});
