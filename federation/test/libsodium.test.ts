import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { decodeBase64, encodeBase64 } from '@trellis/protocol/base64.ts';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { libsodiumVerify, opensslVerify, type Verify } from '../libsodium.ts';

const libsodium = libsodiumVerify();
const skip = libsodium ? false : 'sodium-native has nothing for this platform';
const key = SigningKey.generate();
const publicKey = decodeBase64(key.publicKeyBase64)!;
const GROUP_ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;
const PRIME = 2n ** 255n - 19n;

/** What both say; fails where they say different things. */
function both(publicKey: Uint8Array, text: string, signature: Uint8Array): boolean {
  const verdicts = [libsodium!, opensslVerify].map((verify: Verify) =>
    verify(encodeBase64(publicKey), text, encodeBase64(signature)),
  );
  assert.equal(verdicts[0], verdicts[1], `${encodeBase64(publicKey)} ${text} ${encodeBase64(signature)}`);
  return verdicts[0]!;
}

test('libsodium and OpenSSL agree on signatures, right and changed', { skip }, () => {
  for (let i = 0; i < 64; i++) {
    const text = `${i} é 𝕏`;
    const signature = decodeBase64(key.sign(text))!;
    assert.equal(both(publicKey, text, signature), true);
    assert.equal(both(publicKey, `${text}.`, signature), false);
    const changed = Buffer.from(signature);
    changed[i]! ^= 1;
    assert.equal(both(publicKey, text, changed), false);
    const s = toNumber(signature.subarray(32)) + GROUP_ORDER;
    assert.equal(both(publicKey, text, Buffer.concat([signature.subarray(0, 32), toBytes(s)])), false);
  }
  assert.equal(both(publicKey, 'a', new Uint8Array(63)), false);
  assert.equal(both(publicKey.subarray(1), 'a', new Uint8Array(64)), false);
});

test('they agree on keys and points of small order, in all their spellings', { skip }, () => {
  // y of the points of order 8: y² = -x², so d·y⁴ + 2y² - 1 = 0.
  const d = modulo(-121665n * inverse(121666n));
  const root = squareRoot(modulo(1n + d))!;
  const eighth = [root, -root].map((r) => squareRoot(modulo((r - 1n) * inverse(d)))).find(Boolean)!;
  const ys = [0n, 1n, PRIME - 1n, PRIME, PRIME + 1n, eighth, PRIME - eighth];
  const points = ys.flatMap((y) => [toBytes(y), toBytes(y + 2n ** 255n)]);
  for (const weak of points)
    for (const r of points)
      for (let i = 0; i < 20; i++)
        assert.equal(both(weak, `${i}`, Buffer.concat([r, Buffer.alloc(32)])), false);
});

test('they agree on a signature whose R is the neutral element', { skip }, () => {
  const secret = createHash('sha512').update(decodeBase64(key.seedBase64)!).digest().subarray(0, 32);
  secret[0]! &= 248;
  secret[31] = (secret[31]! & 127) | 64;
  const r = toBytes(1n);
  const hash = createHash('sha512').update(r).update(publicKey).update('text').digest();
  // S·B = R + k·A holds, as it does for a signature.
  const s = (toNumber(hash) * toNumber(secret)) % GROUP_ORDER;
  assert.equal(both(publicKey, 'text', Buffer.concat([r, toBytes(s)])), false);
});

function toNumber(bytes: Uint8Array): bigint {
  return BigInt(`0x${Buffer.from(bytes).reverse().toString('hex')}`);
}

function toBytes(value: bigint): Buffer {
  return Buffer.from(value.toString(16).padStart(64, '0'), 'hex').reverse();
}

function modulo(value: bigint): bigint {
  return ((value % PRIME) + PRIME) % PRIME;
}

function power(base: bigint, exponent: bigint): bigint {
  let result = 1n;
  for (let b = modulo(base), e = exponent; e > 0n; b = (b * b) % PRIME, e >>= 1n)
    if (e & 1n) result = (result * b) % PRIME;
  return result;
}

function inverse(value: bigint): bigint {
  return power(value, PRIME - 2n);
}

function squareRoot(value: bigint): bigint | undefined {
  const root = power(value, (PRIME + 3n) / 8n);
  const other = (root * power(2n, (PRIME - 1n) / 4n)) % PRIME;
  return [root, other].find((candidate) => (candidate * candidate) % PRIME === value);
}
