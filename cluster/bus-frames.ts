/** Frames on a stream of bytes: length (32 bits), kind (8 bits), body. */

export const FRAME = { hello: 1, challenge: 2, proof: 3, messages: 4, beat: 5, bye: 6, gone: 7 } as const;

const HEADER = 5;
/** Messages are put together to frames of about this many characters. */
const BATCH = 1024 * 1024;

export function frame(kind: number, body = ''): Buffer {
  const length = Buffer.byteLength(body);
  const bytes = Buffer.allocUnsafe(HEADER + length);
  bytes.writeUInt32LE(length, 0);
  bytes[4] = kind;
  if (length > 0) bytes.write(body, HEADER);
  return bytes;
}

/** JSON texts as arrays of several of them, as JSON too. */
export function batches(texts: readonly string[]): string[] {
  const made: string[] = [];
  let from = 0;
  let size = 0;
  for (let i = 0; i < texts.length; i++) {
    size += texts[i]!.length;
    if (size < BATCH && i < texts.length - 1) continue;
    const some = from === 0 && i === texts.length - 1 ? texts : texts.slice(from, i + 1);
    made.push(`[${some.join(',')}]`);
    from = i + 1;
    size = 0;
  }
  return made;
}

export class FrameReader {
  readonly #handle: (kind: number, body: Buffer) => void;
  /** Longer frames are refused by an error. To be raised once the other side is known. */
  maxLength: number;
  /** Nothing more is handed out. */
  stopped = false;
  #held: Buffer[] = [];
  #heldLength = 0;
  #needed = HEADER;

  constructor(maxLength: number, handle: (kind: number, body: Buffer) => void) {
    this.maxLength = maxLength;
    this.#handle = handle;
  }

  /** Throws where what comes cannot be a frame. */
  push(chunk: Buffer): void {
    if (this.stopped) return;
    let bytes = chunk;
    if (this.#heldLength > 0) {
      this.#held.push(chunk);
      this.#heldLength += chunk.length;
      if (this.#heldLength < this.#needed) return;
      bytes = Buffer.concat(this.#held, this.#heldLength);
    }
    let at = 0;
    this.#needed = HEADER;
    while (bytes.length - at >= HEADER) {
      const length = bytes.readUInt32LE(at);
      if (length > this.maxLength) throw new Error(`a frame of ${length} bytes`);
      this.#needed = HEADER + length;
      if (bytes.length - at < this.#needed) break;
      this.#handle(bytes[at + 4]!, bytes.subarray(at + HEADER, at + this.#needed));
      if (this.stopped) return;
      at += this.#needed;
      this.#needed = HEADER;
    }
    this.#held = at < bytes.length ? [at === 0 ? bytes : bytes.subarray(at)] : [];
    this.#heldLength = bytes.length - at;
  }
}
