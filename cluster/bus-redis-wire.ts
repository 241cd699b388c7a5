import { randomBytes } from 'node:crypto';
import type { Redis } from 'ioredis';
import type { BusLog } from './bus.ts';
import { TYPE } from './bus-redis-seal.ts';
import { pubSubConnection, type RedisNode, type RedisPlace } from './redis-place.ts';

const MIN_RETRY_MS = 50;
const MAX_RETRY_MS = 500;
/** With what was sent not coming back for so many looks, both connections are made anew. */
const DEAF_LOOKS = 3;

export interface WireParts {
  readonly place: RedisPlace;
  readonly channel: string;
  readonly log: BusLog | undefined;
  packet(bytes: Buffer): void;
  /** From now on packets can go out and come in, after nothing could. */
  up(): void;
  down(): void;
}

/**
 * A connection to publish on and one that is subscribed to a channel, made anew whenever one of them ends. Whether all
 * of it works is known by publishing to the own channel now and then.
 */
export class RedisWire {
  readonly #parts: WireParts;
  readonly #token = randomBytes(16);
  #publisher: Redis | undefined;
  #subscriber: Redis | undefined;
  #up = false;
  #closed = false;
  #attempt = 0;
  #node = 0;
  #nodes: readonly RedisNode[];
  #timer: NodeJS.Timeout | undefined;
  /** Since the last look: what came back of the own, anything at all, and answers to what was published. */
  #echoed = false;
  #heard = false;
  #answered = false;
  #deafLooks = 0;

  constructor(parts: WireParts) {
    this.#parts = parts;
    const { place } = parts;
    this.#nodes = 'nodes' in place ? place.nodes : [];
    this.#node = Math.floor(Math.random() * this.#nodes.length);
  }

  /** Resolves once it is up for the first time. */
  start(): Promise<void> {
    this.#open();
    return new Promise((ready) => {
      this.#ready = ready;
    });
  }
  #ready: (() => void) | undefined;

  get isUp(): boolean {
    return this.#up;
  }

  /** @param absent told where Redis says that nobody is subscribed to it */
  publish(channel: string, bytes: Buffer, absent?: (isAbsent: boolean) => void): void {
    if (!this.#up) return;
    // What got lost is repeated by those who have sent it.
    this.#publisher!.publish(channel, bytes).then(
      (receivers) => {
        this.#answered = true;
        // In a Cluster only those at the same node are counted.
        if (this.#nodes.length === 0) absent?.(receivers === 0);
      },
      () => {},
    );
  }

  /** To be called at regular times. @returns whether what was published since the last time came through */
  look(): boolean {
    const works = this.#up && this.#echoed;
    // Behind much that comes in, the own may be late.
    const isDeaf = !works && !(this.#heard && this.#answered);
    this.#echoed = false;
    this.#heard = false;
    this.#answered = false;
    if (this.#up) {
      this.#deafLooks = isDeaf ? this.#deafLooks + 1 : 0;
      if (this.#deafLooks > DEAF_LOOKS) {
        this.#parts.log?.warn({}, 'Redis does not pass on what is published; connecting anew');
        this.#fail();
      } else this.publish(this.#parts.channel, Buffer.concat([Buffer.from([TYPE.echo, 0]), this.#token]));
    }
    return works;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#up = false;
    clearTimeout(this.#timer);
    for (const redis of [this.#publisher, this.#subscriber]) redis?.disconnect();
  }

  #open(): void {
    const { place, channel } = this.#parts;
    const node = (offset: number) => this.#nodes[(this.#node + offset) % (this.#nodes.length || 1)];
    // In a Cluster at two nodes, so that the way between them is watched too.
    const publisher = pubSubConnection(place, node(0), 'trellis-publish');
    const subscriber = pubSubConnection(place, node(1), 'trellis-subscribe');
    this.#publisher = publisher;
    this.#subscriber = subscriber;
    const failed = (err?: unknown) => {
      if (this.#publisher === publisher) this.#fail(err);
    };
    for (const redis of [publisher, subscriber]) {
      redis.on('error', failed);
      redis.on('end', () => failed());
    }
    subscriber.on('messageBuffer', (_channel: Buffer, bytes: Buffer) => this.#received(bytes));
    Promise.all([publisher.connect(), subscriber.connect().then(() => subscriber.subscribe(channel))]).then(
      () => {
        if (this.#closed || this.#publisher !== publisher) return;
        this.#attempt = 0;
        this.#deafLooks = 0;
        this.#up = true;
        this.#ready?.();
        this.#parts.up();
      },
      failed,
    );
  }

  /** Ends both connections, and makes new ones soon. */
  #fail(err?: unknown): void {
    if (this.#closed) return;
    const [publisher, subscriber] = [this.#publisher, this.#subscriber];
    this.#publisher = undefined;
    this.#subscriber = undefined;
    publisher?.disconnect();
    subscriber?.disconnect();
    if (this.#attempt === 0) this.#parts.log?.warn({ err }, 'the connection to Redis is lost');
    if (this.#up) {
      this.#up = false;
      this.#parts.down();
    }
    this.#node += 1;
    // Not all processes at the same time.
    const wait = Math.min(MAX_RETRY_MS, MIN_RETRY_MS * 2 ** this.#attempt++) * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => this.#open(), wait);
  }

  #received(bytes: Buffer): void {
    if (this.#closed) return;
    this.#heard = true;
    if (bytes[0] !== TYPE.echo) this.#parts.packet(bytes);
    else if (bytes.subarray(2).equals(this.#token)) this.#echoed = true;
  }
}
