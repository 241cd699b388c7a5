import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Trouble } from './network.ts';

const MAX_HELD_BYTES = 1 << 20;

/** The way from one server to another: a TCP proxy that can be cut and slowed down. */
export class Link {
  readonly #target: number;
  readonly #listener: Server;
  readonly #pipes = new Set<Pipe>();
  readonly #troubles = new Set<Trouble>();
  /** Connections so far. */
  count = 0;

  constructor(target: number) {
    this.#target = target;
    this.#listener = createServer((socket) => this.#take(socket));
  }

  async open(): Promise<number> {
    await new Promise<void>((done) => this.#listener.listen(0, '127.0.0.1', done));
    return (this.#listener.address() as { port: number }).port;
  }

  close(): void {
    this.#listener.close();
    for (const pipe of this.#pipes) pipe.end();
  }

  /** @returns what ends the trouble */
  trouble(trouble: Trouble): () => void {
    this.#troubles.add(trouble);
    if (trouble.kind === 'refuse') for (const pipe of this.#pipes) pipe.end();
    return () => {
      this.#troubles.delete(trouble);
      for (const pipe of this.#pipes) pipe.move();
    };
  }

  get isSwallowing(): boolean {
    return [...this.#troubles].some(({ kind }) => kind === 'swallow');
  }

  get delay(): number {
    return Math.max(0, ...[...this.#troubles].map(({ ms }) => ms ?? 0));
  }

  #take(socket: Socket): void {
    if ([...this.#troubles].some(({ kind }) => kind === 'refuse')) {
      socket.resetAndDestroy();
      return;
    }
    this.count++;
    const there = connect(this.#target, '127.0.0.1');
    const pipes = [new Pipe(this, socket, there), new Pipe(this, there, socket)];
    for (const pipe of pipes) {
      this.#pipes.add(pipe);
      pipe.onEnd = () => this.#pipes.delete(pipe);
    }
  }
}

/** One direction of a connection. */
class Pipe {
  readonly #link: Link;
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #held: Array<{ due: number; data: Buffer | undefined }> = [];
  #bytes = 0;
  #timer: NodeJS.Timeout | undefined;
  onEnd = () => {};

  constructor(link: Link, from: Socket, to: Socket) {
    this.#link = link;
    this.#from = from;
    this.#to = to;
    from.setNoDelay(true);
    from.on('data', (data: Buffer) => this.#hold(data));
    from.on('error', () => {});
    // That the other side has gone away is news too: it comes after the data, or not at all.
    from.on('close', () => this.#hold(undefined));
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#from.destroy();
    this.#to.destroy();
    this.onEnd();
  }

  /** Passes on what is due. */
  move(): void {
    clearTimeout(this.#timer);
    if (this.#link.isSwallowing) return;
    const now = performance.now();
    while (this.#held[0] && this.#held[0].due <= now) {
      const { data } = this.#held.shift()!;
      if (data === undefined) {
        this.end();
        return;
      }
      this.#bytes -= data.length;
      this.#to.write(data);
    }
    if (this.#held[0]) this.#timer = setTimeout(() => this.move(), this.#held[0].due - now);
    if (this.#bytes < MAX_HELD_BYTES) this.#from.resume();
  }

  #hold(data: Buffer | undefined): void {
    this.#held.push({ due: performance.now() + this.#link.delay, data });
    this.#bytes += data?.length ?? 0;
    if (this.#bytes >= MAX_HELD_BYTES) this.#from.pause();
    this.move();
  }
}
