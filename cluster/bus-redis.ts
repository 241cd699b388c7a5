import { decodeJson } from '@trellis/protocol/json.ts';
import {
  type Bus,
  type BusEvents,
  type BusOptions,
  DEFAULT_MAX_QUEUED,
  type DownReason,
  deliverAll,
  encode,
  Gone,
  type Peer,
} from './bus.ts';
import { RedisPeer, type RedisPeerParts } from './bus-redis-peer.ts';
import { type LinkHello, Sealer, senderOf, TYPE } from './bus-redis-seal.ts';
import { RedisWire } from './bus-redis-wire.ts';
import { Watch } from './bus-watch.ts';
import type { Json } from './cluster.ts';
import type { RedisPlace } from './redis-place.ts';

export interface RedisBusOptions extends BusOptions {
  readonly redis: RedisPlace;
  /** The same for all processes, another one for each installation at the same Redis. */
  readonly installation: string;
}

const SILENCE_MS = 5000;
/** Of those who have greeted, and have not shown yet that they did it just now. */
const MAX_UNKNOWN = 1000;
const WARN_EVERY_MS = 60_000;

/**
 * Processes of many machines. Redis carries packets and keeps nothing: what it loses is repeated. Nobody is held for
 * dead while this process's own way through Redis does not work.
 */
export class RedisBus implements Bus {
  readonly self: string;
  readonly address: string;
  readonly #options: RedisBusOptions;
  readonly #sealer: Sealer;
  readonly #wire: RedisWire;
  readonly #parts: RedisPeerParts;
  readonly #peers = new Map<string, RedisPeer>();
  readonly #gone = new Gone();
  readonly #unsent = new Set<RedisPeer>();
  #watch: Watch<RedisPeer> | undefined;
  #events: BusEvents | undefined;
  #closed = false;
  #worked = false;
  #warned = 0;

  constructor(options: RedisBusOptions) {
    const { self, installation, secret, redis: place, log } = options;
    this.self = self;
    this.address = `trellis:${installation}:${self}`;
    this.#options = options;
    this.#sealer = new Sealer(secret, installation);
    this.#wire = new RedisWire({
      place,
      channel: this.address,
      log,
      packet: (bytes) => this.#received(bytes),
      up: () => {
        for (const peer of this.#peers.values()) peer.up();
      },
      down: () => {
        for (const peer of this.#peers.values()) peer.down();
      },
    });
    this.#parts = {
      self,
      address: this.address,
      sealer: this.#sealer,
      maxQueued: options.maxQueued ?? DEFAULT_MAX_QUEUED,
      isUp: () => this.#wire.isUp,
      publish: (channel, bytes, absent) => this.#wire.publish(channel, bytes, absent),
      deliver: (peer, text) => deliverAll(peer, decodeJson(text) as Json[], this.#events!),
      lost: (peer, why) => this.#lost(peer, why),
    };
  }

  async start(events: BusEvents): Promise<void> {
    this.#events = events;
    await this.#wire.start();
    this.#watch = new Watch(this.#options.silence ?? SILENCE_MS, {
      peers: () => this.#peers.values(),
      beat: (peer) => peer.beat(),
      silent: (peer) => this.#lost(peer, 'silent'),
      tick: () => this.#look(),
      weight: (peer) => (!this.#worked ? 0 : peer.absent ? 2 : 1),
    });
  }

  connect(peer: Peer): void {
    const known = this.#peer(peer, true);
    if (known) known.expected = true;
  }

  disconnect(id: string): void {
    const peer = this.#peers.get(id);
    if (!peer) return;
    peer.flush();
    this.#forget(peer);
    peer.end();
  }

  send(to: string | readonly string[], message: Json): void {
    const text = encode(message);
    if (typeof to === 'string') this.#queue(to, text);
    else for (const id of to) this.#queue(id, text);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch?.stop();
    await Promise.all([...this.#peers.values()].map((peer) => peer.leave()));
    this.#peers.clear();
    await this.#wire.close();
  }

  #queue(id: string, text: string): void {
    const peer = this.#peers.get(id);
    if (!peer || this.#closed) return;
    peer.queue(text);
    if (this.#unsent.size === 0) setImmediate(() => this.#flush());
    this.#unsent.add(peer);
  }

  #flush(): void {
    const peers = [...this.#unsent];
    this.#unsent.clear();
    for (const peer of peers) peer.flush();
  }

  #peer(peer: Peer, expected: boolean): RedisPeer | undefined {
    if (this.#closed || peer.id === this.self || this.#gone.has(peer.id)) return undefined;
    let known = this.#peers.get(peer.id);
    if (!known) {
      known = new RedisPeer(peer, expected, this.#parts);
      this.#peers.set(peer.id, known);
    }
    return known;
  }

  #look(): void {
    const worked = this.#wire.look();
    // After an interruption everybody gets time to be back.
    if (worked && !this.#worked) for (const peer of this.#peers.values()) peer.ticksUnheard = 0;
    this.#worked = worked;
  }

  #lost(peer: RedisPeer, why: DownReason): void {
    if (this.#peers.get(peer.id) !== peer) return;
    this.#peers.delete(peer.id);
    this.#unsent.delete(peer);
    const { expected } = peer;
    if (expected) this.#gone.add(peer.id);
    peer.end();
    if (expected && !this.#closed) this.#events!.down(peer.id, why);
  }

  #forget(peer: RedisPeer): void {
    this.#peers.delete(peer.id);
    this.#unsent.delete(peer);
    this.#gone.add(peer.id);
  }

  #received(bytes: Buffer): void {
    const sender = senderOf(bytes);
    if (sender === undefined || this.#gone.has(sender)) return;
    try {
      if (bytes[0] === TYPE.packet) this.#peers.get(sender)?.received(bytes);
      else if (bytes[0] === TYPE.hello) this.#greeted(this.#sealer.openHello(bytes, this.self));
    } catch (err) {
      // Whoever can write to Redis can send any number of them.
      if (Date.now() - this.#warned < WARN_EVERY_MS) return;
      this.#warned = Date.now();
      this.#options.log?.warn({ err, peer: sender }, 'a packet on Redis was not made by who it says');
    }
  }

  #greeted(hello: LinkHello): void {
    let peer = this.#peers.get(hello.id);
    if (!peer) {
      let unknown = 0;
      for (const { expected } of this.#peers.values()) if (!expected) unknown += 1;
      if (unknown < MAX_UNKNOWN) peer = this.#peer(hello, false);
    }
    peer?.greeted(hello);
  }
}
