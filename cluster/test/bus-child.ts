/** A process of its own with a bus: the tests stop and kill it. Driven over IPC. */
import { createServer } from 'node:net';
import type { Bus, DownReason } from '../bus.ts';
import { RedisBus, type RedisBusOptions } from '../bus-redis.ts';
import { SocketBus, type SocketBusOptions } from '../bus-sockets.ts';
import type { Json } from '../cluster.ts';

export type ChildOptions =
  | { readonly transport: 'sockets'; readonly options: SocketBusOptions }
  | { readonly transport: 'redis'; readonly options: RedisBusOptions };

export type ToChild =
  | { readonly do: 'connect'; readonly id: string; readonly address: string }
  | { readonly do: 'send'; readonly to: string; readonly message: Json }
  /** Numbers from 0 on, so many a millisecond, until `count`. */
  | {
      readonly do: 'flood';
      readonly to: string;
      readonly count: number;
      readonly perMs: number;
      readonly text: string;
    }
  | { readonly do: 'busy'; readonly ms: number }
  | { readonly do: 'cpu' }
  /** Tells whoever says something on a socket there what number it has heard last, as a request would be answered. */
  | { readonly do: 'answer'; readonly path: string };

export type FromChild =
  | { readonly t: 'started'; readonly address: string }
  | { readonly t: 'message'; readonly from: string; readonly message: Json }
  | { readonly t: 'down'; readonly peer: string; readonly why: DownReason }
  /** Microseconds. */
  | { readonly t: 'cpu'; readonly used: number }
  | { readonly t: 'answering' };

const setup = JSON.parse(process.argv[2]!) as ChildOptions;
const bus: Bus = setup.transport === 'sockets' ? new SocketBus(setup.options) : new RedisBus(setup.options);
const tell = (told: FromChild) => process.send?.(told);

let lastHeard = -1;

process.on('disconnect', () => process.exit());
process.on('message', async (order: ToChild) => {
  if (order.do === 'connect') bus.connect(order);
  else if (order.do === 'send') bus.send(order.to, order.message);
  else if (order.do === 'busy') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, order.ms);
  else if (order.do === 'answer') {
    const server = createServer((socket) =>
      socket.on('data', () => setImmediate(() => socket.write(`${lastHeard}`))),
    );
    server.listen(order.path, () => tell({ t: 'answering' }));
  } else if (order.do === 'cpu') {
    const { user, system } = process.cpuUsage();
    tell({ t: 'cpu', used: user + system });
  } else {
    for (let n = 0; n < order.count; n++) {
      bus.send(order.to, { n, text: order.text });
      if (n % order.perMs === order.perMs - 1) await new Promise((later) => setTimeout(later, 1));
    }
  }
});

await bus.start({
  // What is not for the test is answered.
  message: (from, message) => {
    if (typeof message === 'object' && message !== null && 'n' in message) {
      lastHeard = Number((message as { n: number }).n);
      return;
    }
    if (message === 'ping') bus.send(from, 'pong');
    else tell({ t: 'message', from, message });
  },
  down: (peer, why) => tell({ t: 'down', peer, why }),
});
tell({ t: 'started', address: bus.address });
