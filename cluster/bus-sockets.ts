import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
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
  MAX_MESSAGE,
  type Peer,
} from './bus.ts';
import { FRAME, FrameReader, frame } from './bus-frames.ts';
import { type Challenge, Handshake, type Hello, readHello } from './bus-handshake.ts';
import { socketPath } from './bus-socket-path.ts';
import { type PeerParts, SocketPeer } from './bus-socket-peer.ts';
import { Watch } from './bus-watch.ts';
import type { Json } from './cluster.ts';

export interface SocketBusOptions extends BusOptions {
  /** Where the sockets are, the same for all processes. Made if it is not there; closed to other users. */
  readonly folder: string;
}

const SILENCE_MS = 4000;
const MAX_HANDSHAKE_FRAME = 4096;
/** A frame holds messages up to a size and one more. */
const MAX_FRAME = MAX_MESSAGE + 4 * 1024 * 1024;

/** Processes of one machine. That one is dead is seen by its connections, that it is stopped by missing heartbeats. */
export class SocketBus implements Bus {
  readonly self: string;
  readonly #options: SocketBusOptions;
  readonly #handshake: Handshake;
  readonly #peers = new Map<string, SocketPeer>();
  readonly #gone = new Gone();
  readonly #unsent = new Set<SocketPeer>();
  readonly #handing: Array<{ readonly to: ReadonlyArray<readonly [SocketPeer, number]>; then(): void }> = [];
  readonly #strangers = new Set<Socket>();
  readonly #silence: number;
  #address = '';
  #server: Server | undefined;
  #watch: Watch<SocketPeer> | undefined;
  #events: BusEvents | undefined;
  #parts: PeerParts | undefined;
  #closed = false;

  constructor(options: SocketBusOptions) {
    this.self = options.self;
    this.#options = options;
    this.#silence = options.silence ?? SILENCE_MS;
    this.#handshake = new Handshake(options.secret);
  }

  get address(): string {
    return this.#address;
  }

  async start(events: BusEvents): Promise<void> {
    this.#events = events;
    this.#address = await socketPath(this.#options.folder);
    this.#parts = {
      self: this.self,
      address: this.#address,
      handshake: this.#handshake,
      maxQueued: this.#options.maxQueued ?? DEFAULT_MAX_QUEUED,
      lost: (peer, why) => this.#lost(peer, why),
      written: () => this.#checkHandedOver(),
    };
    this.#server = createServer((socket) => this.#greet(socket));
    this.#server.listen(this.#address);
    await once(this.#server, 'listening');
    this.#watch = new Watch(this.#silence, {
      peers: () => this.#peers.values(),
      beat: (peer) => peer.beat(),
      silent: (peer) => this.#lost(peer, 'silent'),
    });
  }

  connect(peer: Peer): void {
    this.#peer(peer);
  }

  disconnect(id: string): void {
    const peer = this.#peers.get(id);
    if (!peer) return;
    this.#forget(peer);
    peer.flush();
    peer.end(FRAME.gone);
  }

  send(to: string | readonly string[], message: Json): void {
    const text = encode(message);
    if (typeof to === 'string') this.#queue(to, text);
    else for (const id of to) this.#queue(id, text);
  }

  handedOver(to: readonly string[], then: () => void): void {
    const peers = to.map((id) => this.#peers.get(id)).filter((peer) => peer !== undefined);
    this.#handing.push({ to: peers.map((peer) => [peer, peer.sent] as const), then });
    if (this.#handing.length === 1) setImmediate(() => this.#checkHandedOver());
  }

  #checkHandedOver(): void {
    let count = 0;
    for (const { to } of this.#handing) {
      if (!to.every(([peer, number]) => peer.hasHandedOver(number))) break;
      count++;
    }
    for (const { then } of this.#handing.splice(0, count)) then();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch?.stop();
    const server = this.#server;
    const serverClosed = server && new Promise<void>((closed) => server.close(() => closed()));
    for (const socket of this.#strangers) socket.destroy();
    await Promise.all([...this.#peers.values()].map((peer) => peer.leave()));
    this.#peers.clear();
    await serverClosed;
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

  /** @returns the peer, with whom it is connected from now on; `undefined` when that is over */
  #peer(peer: Peer): SocketPeer | undefined {
    if (!this.#parts) throw new Error('the bus was not started');
    if (this.#closed || peer.id === this.self || this.#gone.has(peer.id)) return undefined;
    let known = this.#peers.get(peer.id);
    if (!known) {
      known = new SocketPeer(peer, this.#parts);
      this.#peers.set(peer.id, known);
    }
    return known;
  }

  #lost(peer: SocketPeer, why: DownReason): void {
    if (this.#closed || this.#peers.get(peer.id) !== peer) return;
    this.#forget(peer);
    peer.end(FRAME.gone);
    if (why === 'refused') this.#options.log?.warn({ peer: peer.id }, 'a peer does not know the secret');
    this.#events!.down(peer.id, why);
  }

  #forget(peer: SocketPeer): void {
    this.#peers.delete(peer.id);
    this.#unsent.delete(peer);
    this.#gone.add(peer.id);
    setImmediate(() => this.#checkHandedOver());
  }

  /** Someone has connected. */
  #greet(socket: Socket): void {
    if (this.#closed) return void socket.destroy();
    this.#strangers.add(socket);
    const timer = setTimeout(() => socket.destroy(), this.#silence);
    timer.unref();
    const known = () => {
      clearTimeout(timer);
      this.#strangers.delete(socket);
    };
    let hello: Hello | undefined;
    let challenge: Challenge | undefined;
    let peer: SocketPeer | undefined;
    const reader = new FrameReader(MAX_HANDSHAKE_FRAME, (kind, body) => {
      if (peer) return this.#frame(peer, reader, kind, body);
      if (!hello) {
        if (kind !== FRAME.hello) throw new Error('not a hello');
        hello = readHello(body);
        if (hello.to !== this.self) throw new Error('meant for another');
        challenge = this.#handshake.challenge(hello);
        socket.write(frame(FRAME.challenge, JSON.stringify(challenge)));
        return;
      }
      if (kind !== FRAME.proof || !this.#handshake.isProof(body.toString(), hello, challenge!))
        throw new Error('the secret is not known there');
      known();
      peer = this.#peer(hello);
      if (!peer?.attach(socket)) {
        reader.stopped = true;
        return void socket.end(frame(FRAME.gone));
      }
      peer.heard();
      reader.maxLength = MAX_FRAME;
    });
    socket.on('data', (chunk: Buffer) => {
      try {
        peer?.heard();
        reader.push(chunk);
      } catch (err) {
        reader.stopped = true;
        this.#options.log?.warn({ err, peer: hello?.id }, 'a connection was refused');
        socket.destroy();
      }
    });
    socket.on('error', () => {});
    socket.on('close', known);
  }

  #frame(peer: SocketPeer, reader: FrameReader, kind: number, body: Buffer): void {
    if (kind === FRAME.messages) deliverAll(peer, decodeJson(body.toString()) as Json[], this.#events!);
    else if (kind === FRAME.bye) peer.heard('left');
    else if (kind === FRAME.gone) peer.heard('gave-us-up');
    if (peer.over) reader.stopped = true;
  }
}
