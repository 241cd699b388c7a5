import { randomBytes } from 'node:crypto';
import type { DownReason, Peer } from './bus.ts';
import { batches } from './bus-frames.ts';
import type { LinkHello, SealedSession, Sealer } from './bus-redis-seal.ts';
import type { Watched } from './bus-watch.ts';
import { KIND, Link, type Packet } from './link.ts';

const HELLO_MS = 200;
/** A farewell waits so long for being heard. */
const FAREWELL_MS = 1000;

export interface RedisPeerParts {
  readonly self: string;
  readonly address: string;
  readonly sealer: Sealer;
  readonly maxQueued: number;
  isUp(): boolean;
  publish(channel: string, bytes: Buffer, absent: (isAbsent: boolean) => void): void;
  deliver(peer: RedisPeer, text: string): void;
  lost(peer: RedisPeer, why: DownReason): void;
}

/** The link with another process: first a greeting of both by fresh random numbers, then packets under keys of these. */
export class RedisPeer implements Watched {
  readonly id: string;
  readonly address: string;
  ticksUnheard = 0;
  ticksUnsaid = 0;
  /** Whether its end is to be told: somebody has asked for it, or it has shown that it is alive. */
  expected: boolean;
  /** Redis says that nobody listens there: it is dead, or makes a new connection. */
  absent = false;
  over = false;
  readonly #parts: RedisPeerParts;
  readonly #salt = randomBytes(16).toString('base64');
  readonly #link: Link;
  #peerSalt: string | undefined;
  #session: SealedSession | undefined;
  /** It has shown that it knows this side's number, so that its own is no old one. */
  #confirmed = false;
  readonly #whenConfirmed: Promise<void>;
  readonly #tellConfirmed: () => void;
  #helloTimer: NodeJS.Timeout | undefined;
  #texts: string[] = [];
  #queued = 0;

  constructor({ id, address }: Peer, expected: boolean, parts: RedisPeerParts) {
    this.id = id;
    this.address = address;
    this.expected = expected;
    this.#parts = parts;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#whenConfirmed = promise;
    this.#tellConfirmed = resolve;
    this.#link = new Link({
      transmit: (packet) => {
        this.ticksUnsaid = 0;
        this.#publish(this.#session!.seal(packet));
      },
      deliver: (text) => {
        if (text === undefined) parts.lost(this, 'left');
        else parts.deliver(this, text);
      },
    });
    if (expected) this.hello();
  }

  queue(text: string): void {
    this.#queued += text.length;
    this.#texts.push(text);
  }

  flush(): void {
    if (this.over) return;
    if (this.#queued + this.#link.bytes > this.#parts.maxQueued) this.#parts.lost(this, 'silent');
    if (!this.#confirmed || this.over) return;
    const texts = this.#texts;
    this.#texts = [];
    this.#queued = 0;
    for (const batch of batches(texts)) this.#link.push(batch);
  }

  beat(): void {
    this.ticksUnsaid = 0;
    if (this.#confirmed) this.#link.beat();
  }

  up(): void {
    if (this.#confirmed) this.#link.opened();
    else this.hello();
  }

  down(): void {
    this.#link.shut();
  }

  hello(): void {
    clearTimeout(this.#helloTimer);
    if (this.over) return;
    const { self, address, sealer } = this.#parts;
    this.#publish(sealer.sealHello({ id: self, address, salt: this.#salt, echo: this.#peerSalt }, this.id));
    if (this.#confirmed) return;
    this.#helloTimer = setTimeout(() => this.hello(), HELLO_MS);
    this.#helloTimer.unref();
  }

  greeted(hello: LinkHello): void {
    if (this.#confirmed) {
      // It has not heard that its number came.
      if (hello.salt === this.#peerSalt && hello.echo !== this.#salt) this.hello();
      return;
    }
    if (hello.salt !== this.#peerSalt) {
      this.#peerSalt = hello.salt;
      this.#session = this.#parts.sealer.session(this.#parts.self, this.#salt, this.id, hello.salt);
    }
    if (hello.echo === this.#salt) this.#confirm();
    else this.hello();
  }

  /** Throws for what was not made by the other side. */
  received(bytes: Buffer): void {
    const session = this.#session;
    if (!session || this.over || !this.#link.isNew(session.counterOf(bytes))) return;
    const packet: Packet = session.open(bytes);
    this.ticksUnheard = 0;
    this.absent = false;
    if (!this.#confirmed) this.#confirm();
    if (packet.kind === KIND.gone) this.#parts.lost(this, 'gave-us-up');
    else this.#link.received(packet);
  }

  /** Ends without a word to anybody here. */
  end(): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.#helloTimer);
    if (this.#confirmed) this.#link.beat(KIND.gone);
    this.#link.end();
  }

  /** Says everything that was sent, takes leave, and waits a little for its being heard. */
  async leave(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((over) => {
      timer = setTimeout(over, FAREWELL_MS);
    });
    if (!this.#confirmed && this.#texts.length > 0) await Promise.race([this.#whenConfirmed, late]);
    this.flush();
    if (this.#confirmed && !this.over) await Promise.race([this.#link.bye(), late]);
    clearTimeout(timer);
    this.over = true;
    clearTimeout(this.#helloTimer);
    this.#link.end();
  }

  #confirm(): void {
    this.#confirmed = true;
    this.#tellConfirmed();
    this.expected = true;
    this.ticksUnheard = 0;
    clearTimeout(this.#helloTimer);
    if (this.#parts.isUp()) this.#link.opened();
    this.flush();
  }

  #publish(bytes: Buffer): void {
    this.#parts.publish(this.address, bytes, (isAbsent) => {
      this.absent = isAbsent;
    });
  }
}
