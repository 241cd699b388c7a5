import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { inspect } from 'node:util';
import fc from 'fast-check';
import nacl from 'tweetnacl';
import { decodeBase64, encodeBase64 } from '../base64.ts';
import type { JsonObject } from '../event.ts';
import {
  SigningKey,
  signableText,
  signaturesBy,
  signJson,
  verifyJson,
  verifyKey,
  verifySignature,
  verifySignatureAsync,
} from '../signing.ts';
import { canonicalValue, jsonObject } from './arbitraries.ts';

const vectors = JSON.parse(readFileSync(new URL('vectors/signing.json', import.meta.url), 'utf8'));
const key = SigningKey.fromSeed(vectors.keyId, vectors.seed);
const object = fc.dictionary(fc.string(), canonicalValue, { noNullPrototype: true });
const seed = fc.uint8Array({ minLength: 32, maxLength: 32 });

describe('signing JSON', () => {
  for (const { input, signed } of vectors.objects)
    it(`makes the spec's signature on ${JSON.stringify(input)}`, () => {
      assert.deepEqual(signJson(input, vectors.serverName, key), signed);
      assert.ok(verifyJson(signed, vectors.serverName, vectors.keyId, key.publicKeyBase64));
    });

  it('keeps unsigned and the signatures of others', () => {
    const once = signJson({ a: 1, unsigned: { b: 2 } }, 'one.org', key);
    const twice = signJson(once, 'two.org', key);
    const signature = { [key.keyId]: key.sign('{"a":1}') };
    assert.deepEqual(twice.signatures, { 'one.org': signature, 'two.org': signature });
    assert.deepEqual(twice.unsigned, { b: 2 });
    const other = SigningKey.generate();
    assert.equal(Object.keys(signaturesBy(signJson(twice, 'two.org', other), 'two.org')).length, 2);
  });

  it('verifies what was signed, whatever is unsigned, and nothing else', () => {
    fc.assert(
      fc.property(object, object, (value, unsigned) => {
        const signed = signJson(value as JsonObject, 'a.org', key);
        assert.ok(verifyJson({ ...signed, unsigned }, 'a.org', key.keyId, key.publicKeyBase64));
        assert.equal(
          verifyJson({ ...signed, more: 1 }, 'a.org', key.keyId, key.publicKeyBase64),
          'more' in value && value.more === 1,
        );
        assert.equal(verifyJson(signed, 'b.org', key.keyId, key.publicKeyBase64), false);
        assert.equal(verifyJson(signed, 'a.org', 'ed25519:2', key.publicKeyBase64), false);
        assert.equal(verifyJson(signed, 'a.org', key.keyId, SigningKey.generate().publicKeyBase64), false);
      }),
      { numRuns: 50 },
    );
  });

  it('takes any object and key without a throw', () => {
    fc.assert(
      fc.property(jsonObject, jsonObject, fc.string(), (value, signatures, text) => {
        assert.equal(verifyJson({ ...value, signatures }, text, text, text), false);
        assert.equal(
          verifyJson({ ...value, signatures: { a: { k: text } } }, 'a', 'k', key.publicKeyBase64),
          false,
        );
      }),
    );
  });
});

describe('ed25519', () => {
  it('signs as tweetnacl does, byte for byte', () => {
    fc.assert(
      fc.property(seed, fc.string({ unit: 'binary' }), (bytes, text) => {
        const pair = nacl.sign.keyPair.fromSeed(bytes);
        const ours = SigningKey.fromSeed('ed25519:1', encodeBase64(bytes));
        assert.equal(ours.publicKeyBase64, encodeBase64(pair.publicKey));
        assert.equal(ours.seedBase64, encodeBase64(bytes));
        const signature = nacl.sign.detached(Buffer.from(text), pair.secretKey);
        assert.equal(ours.sign(text), encodeBase64(signature));
        assert.ok(verifySignature(verifyKey(ours.publicKeyBase64)!, text, encodeBase64(signature)));
      }),
      { numRuns: 10 },
    );
  });

  it('makes keys that can be stored', () => {
    const made = SigningKey.generate();
    assert.match(made.keyId, /^ed25519:[A-Za-z0-9_]+$/);
    assert.equal(SigningKey.fromSeed(made.keyId, made.seedBase64).publicKeyBase64, made.publicKeyBase64);
    assert.equal(SigningKey.generate('b_2').keyId, 'ed25519:b_2');
    assert.throws(() => SigningKey.fromSeed('ed25519:1', 'Zm9v'));
    assert.throws(() => SigningKey.fromSeed('rsa:1', made.seedBase64));
    assert.throws(() => SigningKey.fromSeed('ed25519:', made.seedBase64));
  });

  it('shows no seed when printed', () => {
    for (const printed of [JSON.stringify(key), inspect(key, { depth: 9, showHidden: true })])
      assert.equal(printed.includes(key.seedBase64), false);
  });

  it('refuses changed, malleable and misshapen signatures', async () => {
    const publicKey = verifyKey(key.publicKeyBase64)!;
    const signature = decodeBase64(key.sign('text'))!;
    const changed = Buffer.from(signature);
    changed[3]! ^= 1;
    const bad = [
      changed,
      addGroupOrder(signature),
      signature.subarray(1),
      Buffer.concat([signature, Buffer.alloc(1)]),
    ];
    for (const text of [...bad.map(encodeBase64), '', 'x', '!'.repeat(86), '='.repeat(60_000)]) {
      assert.equal(verifySignature(publicKey, 'text', text), false);
      assert.equal(await verifySignatureAsync(publicKey, 'text', text), false);
    }
    assert.equal(await verifySignatureAsync(publicKey, 'text', key.sign('text')), true);
    assert.equal(await verifySignatureAsync(publicKey, 'other', key.sign('text')), false);
  });

  it('refuses public keys of small order and of two spellings', () => {
    // The neutral element, as itself and as y = 1 + p: with it, R = S·B would sign every text.
    const neutral = Buffer.alloc(32);
    neutral[0] = 1;
    const spelledOtherwise = Buffer.alloc(32, 0xff);
    spelledOtherwise[0] = 0xee;
    spelledOtherwise[31] = 0x7f;
    const signature = Buffer.concat([neutral, Buffer.alloc(32)]);
    for (const bytes of [neutral, spelledOtherwise]) {
      assert.ok(
        nacl.sign.detached.verify(Buffer.from('any'), signature, bytes),
        'the attack works on tweetnacl',
      );
      const weak = verifyKey(encodeBase64(bytes));
      assert.equal(weak !== undefined && verifySignature(weak, 'any', encodeBase64(signature)), false);
    }
  });

  it('knows what is no public key', () => {
    for (const text of ['', 'Zm9v', 'x'.repeat(44), '!']) assert.equal(verifyKey(text), undefined);
    assert.equal(verifyKey(key.publicKeyBase64), verifyKey(key.publicKeyBase64));
  });

  it('signs a text of an object without signatures and unsigned', () => {
    assert.equal(signableText({ unsigned: 1, b: 1, signatures: {}, a: 2 }), '{"a":2,"b":1}');
    assert.equal(signableText({ a: 1.5 }, { lax: true }), '{"a":1.5}');
  });
});

/** S + L in place of S verifies mathematically; RFC 8032 has it refused. */
function addGroupOrder(signature: Buffer): Buffer {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n;
  let s = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString('hex')}`) + order;
  const changed = Buffer.from(signature);
  for (let i = 32; i < 64; i++, s >>= 8n) changed[i] = Number(s & 0xffn);
  return changed;
}
