/**
 * Packets on Redis, for anyone there to read and to make: encrypted and authenticated with AES-256-GCM. A link has a key
 * for each direction, derived from the secret, the installation, both names and a fresh random number of each side, so
 * that nothing of another link or an earlier time is accepted; within a link packets are counted.
 */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import type { Packet } from './link.ts';

export const TYPE = { hello: 1, packet: 2, echo: 3 } as const;

export interface LinkHello {
  readonly id: string;
  readonly address: string;
  /** The random number of this side of the link. */
  readonly salt: string;
  /** That of the other side, where it is known: it shows that the hello is fresh. */
  readonly echo: string | undefined;
}

const ALGORITHM = 'aes-256-gcm';
const TAG = 16;
const NONCE = 12;
/** Kind, flags, seq, expects, heard. */
const PACKET_HEADER = 26;
const AGAIN = 1;

/** Who has sent it; `undefined` for what cannot be ours. */
export function senderOf(bytes: Buffer): string | undefined {
  const length = bytes[1];
  if (length === undefined || bytes.length < 2 + length) return undefined;
  return bytes.toString('utf8', 2, 2 + length);
}

function head(type: number, sender: string): Buffer {
  const name = Buffer.from(sender);
  if (name.length > 255) throw new RangeError('a long name');
  return Buffer.concat([Buffer.from([type, name.length]), name]);
}

export class Sealer {
  readonly #secret: string | Uint8Array;
  readonly #installation: string;
  readonly #helloKey: Buffer;

  constructor(secret: string | Uint8Array, installation: string) {
    this.#secret = secret;
    this.#installation = installation;
    this.#helloKey = this.#derive('hello');
  }

  sealHello(hello: LinkHello, receiver: string): Buffer {
    const before = Buffer.concat([head(TYPE.hello, hello.id), randomBytes(NONCE)]);
    const cipher = createCipheriv(ALGORITHM, this.#helloKey, before.subarray(-NONCE));
    cipher.setAAD(Buffer.concat([before, Buffer.from(receiver)]));
    const body = Buffer.concat([cipher.update(JSON.stringify(hello)), cipher.final()]);
    return Buffer.concat([before, body, cipher.getAuthTag()]);
  }

  /** Throws where it was not made by who it says, for `receiver`. */
  openHello(bytes: Buffer, receiver: string): LinkHello {
    const start = 2 + bytes[1]! + NONCE;
    if (bytes.length < start + TAG) throw new Error('cut off');
    const decipher = createDecipheriv(ALGORITHM, this.#helloKey, bytes.subarray(start - NONCE, start));
    decipher.setAAD(Buffer.concat([bytes.subarray(0, start), Buffer.from(receiver)]));
    decipher.setAuthTag(bytes.subarray(-TAG));
    const body = Buffer.concat([decipher.update(bytes.subarray(start, -TAG)), decipher.final()]);
    const hello = JSON.parse(body.toString()) as LinkHello;
    if (hello.id !== senderOf(bytes)) throw new Error('of another');
    return hello;
  }

  /** @param salt of `self`'s side */
  session(self: string, salt: string, peer: string, peerSalt: string): SealedSession {
    return new SealedSession(
      this.#derive(JSON.stringify(['packets', self, peer, salt, peerSalt])),
      this.#derive(JSON.stringify(['packets', peer, self, peerSalt, salt])),
      self,
      peer,
    );
  }

  #derive(what: string): Buffer {
    // The info of HKDF is limited to 1024 bytes, its salt is not.
    const salt = JSON.stringify([this.#installation, what]);
    return Buffer.from(hkdfSync('sha256', this.#secret, salt, 'trellis bus redis', 32));
  }
}

/** Both directions of a link, seen from one side. */
export class SealedSession {
  readonly #sendKey: Buffer;
  readonly #receiveKey: Buffer;
  readonly #head: Buffer;
  readonly #self: Buffer;
  readonly #peer: Buffer;

  constructor(sendKey: Buffer, receiveKey: Buffer, self: string, peer: string) {
    this.#sendKey = sendKey;
    this.#receiveKey = receiveKey;
    this.#head = head(TYPE.packet, self);
    this.#self = Buffer.from(self);
    this.#peer = Buffer.from(peer);
  }

  /** Each counter is to be used once. */
  seal(packet: Packet): Buffer {
    const { length } = this.#head;
    const out = Buffer.allocUnsafe(length + 8 + PACKET_HEADER + packet.body.length + TAG);
    out.set(this.#head, 0);
    out.writeBigUInt64BE(BigInt(packet.counter), length);
    const before = out.subarray(0, length + 8);
    const cipher = createCipheriv(ALGORITHM, this.#sendKey, nonceOf(before));
    cipher.setAAD(Buffer.concat([before, this.#peer]));
    const fields = Buffer.allocUnsafe(PACKET_HEADER);
    fields[0] = packet.kind;
    fields[1] = packet.again ? AGAIN : 0;
    fields.writeDoubleBE(packet.seq, 2);
    fields.writeDoubleBE(packet.expects, 10);
    fields.writeDoubleBE(packet.heard, 18);
    out.set(cipher.update(fields), length + 8);
    out.set(cipher.update(packet.body), length + 8 + PACKET_HEADER);
    cipher.final();
    out.set(cipher.getAuthTag(), out.length - TAG);
    return out;
  }

  counterOf(bytes: Buffer): number {
    const start = 2 + bytes[1]!;
    return bytes.length < start + 8 ? -1 : Number(bytes.readBigUInt64BE(start));
  }

  /** Throws where it was not made by the other side. */
  open(bytes: Buffer): Packet {
    const start = 2 + bytes[1]! + 8;
    if (bytes.length < start + PACKET_HEADER + TAG) throw new Error('cut off');
    const before = bytes.subarray(0, start);
    const decipher = createDecipheriv(ALGORITHM, this.#receiveKey, nonceOf(before));
    decipher.setAAD(Buffer.concat([before, this.#self]));
    decipher.setAuthTag(bytes.subarray(-TAG));
    const plain = decipher.update(bytes.subarray(start, -TAG));
    decipher.final();
    return {
      counter: this.counterOf(bytes),
      kind: plain[0]!,
      again: (plain[1]! & AGAIN) !== 0,
      seq: plain.readDoubleBE(2),
      expects: plain.readDoubleBE(10),
      heard: plain.readDoubleBE(18),
      body: plain.subarray(PACKET_HEADER),
    };
  }
}

/** The counter, which is what `before` ends with: never the same twice under one key. */
function nonceOf(before: Buffer): Buffer {
  const nonce = Buffer.alloc(NONCE);
  nonce.set(before.subarray(-8), NONCE - 8);
  return nonce;
}
