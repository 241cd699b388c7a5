/**
 * Who opens a connection says who it is; both prove by HMACs over fresh random numbers of both that they know the
 * secret of the installation.
 */
import { createHmac, hkdfSync, randomBytes, timingSafeEqual } from 'node:crypto';

export interface Hello {
  readonly id: string;
  readonly address: string;
  /** Whom it wants to speak to. */
  readonly to: string;
  readonly nonce: string;
}

export interface Challenge {
  readonly nonce: string;
  readonly mac: string;
}

const MAX_TEXT = 1024;

export class Handshake {
  readonly #key: Buffer;

  constructor(secret: string | Uint8Array) {
    this.#key = Buffer.from(hkdfSync('sha256', secret, '', 'trellis bus sockets', 32));
  }

  hello(id: string, address: string, to: string): Hello {
    return { id, address, to, nonce: nonce() };
  }

  challenge(hello: Hello): Challenge {
    const own = nonce();
    return { nonce: own, mac: this.#mac('answers', hello, own) };
  }

  /** @returns the proof for who has answered; `undefined` when that one does not know the secret */
  prove(hello: Hello, challenge: Challenge): string | undefined {
    if (!same(challenge.mac, this.#mac('answers', hello, challenge.nonce))) return undefined;
    return this.#mac('asks', hello, challenge.nonce);
  }

  isProof(proof: string, hello: Hello, challenge: Challenge): boolean {
    return same(proof, this.#mac('asks', hello, challenge.nonce));
  }

  #mac(role: string, hello: Hello, answered: string): string {
    const said = JSON.stringify([role, hello.id, hello.address, hello.to, hello.nonce, answered]);
    return createHmac('sha256', this.#key).update(said).digest('base64');
  }
}

/** Throws where it is none. */
export function readHello(body: Buffer): Hello {
  const { id, address, to, nonce } = record(body);
  return { id: text(id), address: text(address), to: text(to), nonce: text(nonce) };
}

/** Throws where it is none. */
export function readChallenge(body: Buffer): Challenge {
  const { nonce, mac } = record(body);
  return { nonce: text(nonce), mac: text(mac) };
}

function record(body: Buffer): Record<string, unknown> {
  const value: unknown = JSON.parse(body.toString());
  if (typeof value !== 'object' || value === null) throw new Error('not an object');
  return value as Record<string, unknown>;
}

function text(value: unknown): string {
  if (typeof value !== 'string' || value.length > MAX_TEXT) throw new Error('not a short text');
  return value;
}

function nonce(): string {
  return randomBytes(32).toString('base64');
}

function same(given: string, expected: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}
