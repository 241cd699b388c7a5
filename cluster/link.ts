/**
 * Order and exactly once between two processes over a channel that may lose, double and reorder packets. Pieces are
 * numbered, acknowledged cumulatively, kept until then, and repeated from the first one missing.
 *
 * Every packet has a counter of its own and names the highest one that its sender has got from the other side: what was
 * sent before that and is not acknowledged is known to be lost, without waiting.
 */

/** Longer messages are cut. */
export const PIECE = 256 * 1024;
const MIN_WINDOW = 4 * PIECE;
/** What a process sends to another in one go: a server that buffers for many receivers has to hold it. */
const MAX_WINDOW = 16 * PIECE;
const ACK_MS = 20;
/** So much comes in before it is acknowledged at once. */
const ACK_BYTES = PIECE;
const FIRST_REPEAT_MS = 250;
const MAX_REPEAT_MS = 1000;

export const KIND = { none: 0, messages: 1, part: 2, bye: 3, gone: 4 } as const;

export interface Packet {
  readonly counter: number;
  readonly kind: number;
  /** Of the piece; 0 when there is none. */
  readonly seq: number;
  /** The first piece that its sender has not got. */
  readonly expects: number;
  /** The highest counter that its sender has got. */
  readonly heard: number;
  /** Its sender was cut off for a while: everything not acknowledged is to be repeated. */
  readonly again: boolean;
  readonly body: Buffer;
}

export interface LinkParts {
  /** Gives a packet to the channel. */
  transmit(packet: Packet): void;
  /** A text that was given to the other side's `push`; `undefined` for its farewell. */
  deliver(text: string | undefined): void;
}

interface Piece {
  readonly kind: number;
  readonly seq: number;
  readonly body: Buffer;
  /** Of the packet that it went out in last. */
  counter: number;
}

const NOTHING = Buffer.alloc(0);

export class Link {
  readonly #parts: LinkParts;
  /** Not acknowledged, from `#head` on; of these up to `#unsent` have gone out. */
  #pieces: Piece[] = [];
  #head = 0;
  #unsent = 0;
  #seq = 0;
  #counter = 0;
  #bytes = 0;
  #inFlight = 0;
  #window = MIN_WINDOW;
  #expects = 1;
  #heard = 0;
  #assembly: Buffer[] = [];
  #unacknowledged = 0;
  #open = false;
  #again = false;
  #ackTimer: NodeJS.Timeout | undefined;
  #ackNow = false;
  #repeatTimer: NodeJS.Timeout | undefined;
  #repeatMs = FIRST_REPEAT_MS;
  #over = false;
  #drained: Array<() => void> = [];

  constructor(parts: LinkParts) {
    this.#parts = parts;
  }

  /** Bytes that are kept. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Packets may go out from now on. Again after the channel was cut: what may be lost is repeated, by both sides. */
  opened(): void {
    this.#open = true;
    this.#again = this.#counter > 0;
    this.#repeatMs = FIRST_REPEAT_MS;
    this.#rewind();
    this.#pump();
    if (this.#again || this.#counter === 0) this.beat();
  }

  /** The channel is cut. */
  shut(): void {
    this.#open = false;
    clearTimeout(this.#repeatTimer);
    this.#repeatTimer = undefined;
  }

  push(text: string): void {
    const body = Buffer.from(text);
    let at = 0;
    for (; body.length - at > PIECE; at += PIECE) this.#add(KIND.part, body.subarray(at, at + PIECE));
    this.#add(KIND.messages, at === 0 ? body : body.subarray(at));
    this.#pump();
  }

  /** The last thing that is said. Resolves when all is acknowledged. */
  bye(): Promise<void> {
    this.#add(KIND.bye, NOTHING);
    this.#pump();
    return new Promise((done) => this.#drained.push(done));
  }

  /** A sign of life, which acknowledges. */
  beat(kind: number = KIND.none): void {
    if (this.#open) this.#transmit(kind, 0, NOTHING);
  }

  end(): void {
    this.shut();
    this.#over = true;
    clearTimeout(this.#ackTimer);
    for (const done of this.#drained.splice(0)) done();
  }

  /** Whether a packet is new: none is taken in twice, or after a later one. */
  isNew(counter: number): boolean {
    return counter > this.#heard;
  }

  received(packet: Packet): void {
    if (this.#over || !this.isNew(packet.counter)) return;
    this.#heard = packet.counter;
    this.#acknowledged(packet.expects);
    const head = this.#pieces[this.#head];
    const isLost = this.#unsent > this.#head && head!.counter <= packet.heard;
    if (isLost) this.#window = Math.max(MIN_WINDOW, this.#window / 2);
    if (isLost || packet.again) this.#rewind();
    this.#pump();
    if (packet.again) this.#soon(0);
    if (packet.seq > 0) this.#take(packet);
  }

  #add(kind: number, body: Buffer): void {
    this.#pieces.push({ kind, seq: ++this.#seq, body, counter: 0 });
    this.#bytes += body.length;
  }

  #pump(): void {
    while (this.#open && this.#unsent < this.#pieces.length) {
      const piece = this.#pieces[this.#unsent]!;
      if (this.#inFlight > 0 && this.#inFlight + piece.body.length > this.#window) break;
      this.#unsent += 1;
      this.#inFlight += piece.body.length;
      this.#transmitPiece(piece);
    }
    this.#watchForLoss();
  }

  #transmitPiece(piece: Piece): void {
    this.#transmit(piece.kind, piece.seq, piece.body);
    piece.counter = this.#counter;
  }

  #transmit(kind: number, seq: number, body: Buffer): void {
    const again = this.#again;
    this.#again = false;
    this.#unacknowledged = 0;
    clearTimeout(this.#ackTimer);
    this.#ackTimer = undefined;
    this.#counter += 1;
    this.#parts.transmit({
      counter: this.#counter,
      kind,
      seq,
      expects: this.#expects,
      heard: this.#heard,
      again,
      body,
    });
  }

  #acknowledged(expects: number): void {
    const before = this.#head;
    while (this.#head < this.#unsent && this.#pieces[this.#head]!.seq < expects) {
      const { length } = this.#pieces[this.#head]!.body;
      this.#head += 1;
      this.#inFlight -= length;
      this.#bytes -= length;
    }
    // What is being repeated may have arrived the first time.
    while (this.#head < this.#pieces.length && this.#pieces[this.#head]!.seq < expects) {
      this.#bytes -= this.#pieces[this.#head]!.body.length;
      this.#head += 1;
      this.#unsent = this.#head;
    }
    if (this.#head === before) return;
    this.#window = Math.min(MAX_WINDOW, this.#window + PIECE / 4);
    this.#repeatMs = FIRST_REPEAT_MS;
    clearTimeout(this.#repeatTimer);
    this.#repeatTimer = undefined;
    this.#forgetSent();
  }

  #forgetSent(): void {
    if (this.#head === this.#pieces.length) {
      this.#pieces = [];
      this.#unsent = 0;
      this.#head = 0;
      for (const done of this.#drained.splice(0)) done();
    } else if (this.#head >= 1024) {
      this.#pieces.splice(0, this.#head);
      this.#unsent -= this.#head;
      this.#head = 0;
    }
  }

  #rewind(): void {
    this.#unsent = this.#head;
    this.#inFlight = 0;
  }

  #watchForLoss(): void {
    if (this.#repeatTimer || !this.#open || this.#unsent === this.#head) return;
    this.#repeatTimer = setTimeout(() => this.#probe(), this.#repeatMs);
    this.#repeatTimer.unref();
  }

  /** The first piece alone: the answer tells what became of the others. */
  #probe(): void {
    this.#repeatTimer = undefined;
    this.#repeatMs = Math.min(MAX_REPEAT_MS, this.#repeatMs * 2);
    if (this.#open && this.#unsent > this.#head) this.#transmitPiece(this.#pieces[this.#head]!);
    this.#watchForLoss();
  }

  #take(packet: Packet): void {
    if (packet.seq !== this.#expects) {
      this.#soon(0);
      return;
    }
    this.#expects += 1;
    this.#unacknowledged += packet.body.length;
    this.#soon(this.#unacknowledged >= ACK_BYTES ? 0 : ACK_MS);
    if (packet.kind === KIND.part) this.#assembly.push(packet.body);
    else this.#parts.deliver(packet.kind === KIND.bye ? undefined : this.#assembled(packet.body));
  }

  #assembled(last: Buffer): string {
    if (this.#assembly.length === 0) return last.toString();
    const whole = Buffer.concat([...this.#assembly, last]);
    this.#assembly = [];
    return whole.toString();
  }

  /** Acknowledges, where nothing else goes out meanwhile. */
  #soon(ms: number): void {
    if (ms === 0 && !this.#ackNow) {
      this.#ackNow = true;
      setImmediate(() => {
        this.#ackNow = false;
        if (!this.#over) this.beat();
      });
    } else if (ms > 0) {
      this.#ackTimer ??= setTimeout(() => this.beat(), ms).unref();
    }
  }
}
