import { createConnection, type Socket } from 'node:net';
import type { DownReason, Peer } from './bus.ts';
import { batches, FRAME, FrameReader, frame } from './bus-frames.ts';
import { type Handshake, type Hello, readChallenge } from './bus-handshake.ts';
import type { Watched } from './bus-watch.ts';

/** After so long whoever was full is asked again for a connection. */
const RETRY_MS = 50;
/** What a process has said before its death is read first; it is there already. */
const LAST_WORDS_MS = 50;
/** How long what is left may take to go out. */
const FAREWELL_MS = 1000;
const MAX_CHALLENGE = 4096;

export interface PeerParts {
  readonly self: string;
  readonly address: string;
  readonly handshake: Handshake;
  readonly maxQueued: number;
  lost(peer: SocketPeer, why: DownReason): void;
  /** The kernel has taken more of what was sent. */
  written(): void;
}

/** The two connections with another process: what goes there on its own, what comes on the other's. */
export class SocketPeer implements Watched {
  readonly id: string;
  readonly address: string;
  ticksUnheard = 0;
  ticksUnsaid = 0;
  readonly #parts: PeerParts;
  #out: Socket | undefined;
  #in: Socket | undefined;
  #established = false;
  #over = false;
  /** Said on the incoming connection before its end. */
  #farewell: DownReason | undefined;
  #texts: string[] = [];
  #queued = 0;
  /** Messages that were sent, and those of them that the kernel has. */
  #sent = 0;
  #written = 0;
  #settled: Array<() => void> = [];

  constructor({ id, address }: Peer, parts: PeerParts) {
    this.id = id;
    this.address = address;
    this.#parts = parts;
    this.#open();
  }

  /** Nothing of it is to be delivered any more. */
  get over(): boolean {
    return this.#over;
  }

  /** The number of the last message. */
  get sent(): number {
    return this.#sent;
  }

  /** Whether all messages up to that number are where the other reads them before anything else. */
  hasHandedOver(number: number): boolean {
    return this.#over || this.#written >= number;
  }

  queue(text: string): void {
    this.#sent++;
    this.#queued += text.length;
    this.#texts.push(text);
  }

  flush(): void {
    if (this.#over) return;
    const waiting = this.#out?.writableLength ?? 0;
    if (this.#queued + waiting > this.#parts.maxQueued) {
      this.#parts.lost(this, 'silent');
      return;
    }
    if (!this.#established || this.#texts.length === 0) return;
    const texts = this.#texts;
    this.#texts = [];
    this.#queued = 0;
    this.ticksUnsaid = 0;
    const frames = batches(texts).map((batch) => frame(FRAME.messages, batch));
    const upTo = this.#sent;
    for (const [i, bytes] of frames.entries())
      if (i < frames.length - 1) this.#out!.write(bytes);
      else this.#out!.write(bytes, () => this.#wrote(upTo));
  }

  #wrote(upTo: number): void {
    this.#written = upTo;
    this.#parts.written();
  }

  beat(): void {
    if (!this.#established || this.#over) return;
    this.ticksUnsaid = 0;
    this.#out!.write(frame(FRAME.beat));
  }

  /** @returns whether it was the first: an incoming connection is there once */
  attach(socket: Socket): boolean {
    if (this.#in || this.#over) return false;
    this.#in = socket;
    socket.on('close', () => this.#lose(this.#farewell ?? 'died'));
    return true;
  }

  heard(farewell?: DownReason): void {
    this.ticksUnheard = 0;
    if (farewell) this.#farewell = farewell;
  }

  /** Ends without a word to anybody here. `kind` is said there, after all that was sent before. */
  end(kind: number): void {
    this.#over = true;
    this.#in?.destroy();
    const out = this.#out;
    if (!out) return;
    if (!this.#established || kind === FRAME.gone) this.#texts = [];
    else for (const batch of batches(this.#texts)) out.write(frame(FRAME.messages, batch));
    if (!this.#established) return void out.destroy();
    out.end(frame(kind));
    setTimeout(() => out.destroy(), FAREWELL_MS).unref();
  }

  /** Says everything that was sent, takes leave, and resolves when the other has closed too. */
  async leave(): Promise<void> {
    if (!this.#established && this.#texts.length > 0) await this.#whenSettled();
    const out = this.#out;
    this.end(FRAME.bye);
    if (out && !out.closed) await new Promise<void>((closed) => out.once('close', () => closed()));
  }

  #whenSettled(): Promise<void> {
    return new Promise((settled) => {
      this.#settled.push(settled);
      setTimeout(settled, FAREWELL_MS).unref();
    });
  }

  #settle(): void {
    for (const settled of this.#settled.splice(0)) settled();
  }

  #open(): void {
    if (this.#over) return;
    const out = createConnection(this.address);
    this.#out = out;
    const { handshake, self, address } = this.#parts;
    const hello = handshake.hello(self, address, this.id);
    let code: string | undefined;
    const reader = new FrameReader(MAX_CHALLENGE, (kind, body) => this.#answered(hello, kind, body));
    out.on('connect', () => out.write(frame(FRAME.hello, JSON.stringify(hello))));
    out.on('data', (chunk: Buffer) => {
      try {
        reader.push(chunk);
      } catch {
        this.#lose('refused');
      }
    });
    out.on('error', (error: NodeJS.ErrnoException) => {
      code = error.code;
    });
    out.on('close', () => {
      if (this.#established || code === 'ECONNREFUSED' || code === 'ENOENT') return this.#outClosed();
      // It has no room for more connections now, or has not waited for ours.
      setTimeout(() => this.#open(), RETRY_MS).unref();
    });
  }

  #answered(hello: Hello, kind: number, body: Buffer): void {
    if (this.#over) return;
    if (this.#established) {
      if (kind === FRAME.gone) this.#lose('gave-us-up');
      return;
    }
    if (kind !== FRAME.challenge) throw new Error('not a challenge');
    const proof = this.#parts.handshake.prove(hello, readChallenge(body));
    if (proof === undefined) throw new Error('the secret is not known there');
    this.#out!.write(frame(FRAME.proof, proof));
    this.#established = true;
    this.flush();
    this.#settle();
  }

  #outClosed(): void {
    if (!this.#in || this.#in.closed) this.#lose('died');
    // Reading comes after timers in a turn of the event loop, immediates come after both.
    else setTimeout(() => setImmediate(() => this.#lose(this.#farewell ?? 'died')), LAST_WORDS_MS);
  }

  #lose(why: DownReason): void {
    this.#settle();
    if (!this.#over) this.#parts.lost(this, why);
  }
}
