import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { type Claim, Signatures } from '../signatures.ts';

const key = SigningKey.generate();
const other = SigningKey.generate();

function claimsOf(count: number): Claim[] {
  return Array.from({ length: count }, (_, n) => [key.publicKeyBase64, `text ${n}`, key.sign(`text ${n}`)]);
}

test('true and false claims are told apart, few and many', async () => {
  const signatures = new Signatures();
  for (const count of [0, 1, 3, 10, 200]) {
    const claims = claimsOf(count);
    const expected = claims.map(() => true);
    if (count > 2) {
      claims[1] = [other.publicKeyBase64, claims[1]![1], claims[1]![2]];
      claims[2] = [key.publicKeyBase64, 'another text', claims[2]![2]];
      expected[1] = false;
      expected[2] = false;
    }
    assert.deepEqual(await signatures.verify(claims), expected);
  }
});

test('what is no key and no signature is not true', async () => {
  const signatures = new Signatures();
  const claims = claimsOf(6);
  claims[0] = ['', claims[0]![1], claims[0]![2]];
  claims[1] = ['no key', claims[1]![1], claims[1]![2]];
  claims[2] = [key.publicKeyBase64, claims[2]![1], ''];
  claims[3] = [key.publicKeyBase64, claims[3]![1], 'AAAA'];
  assert.deepEqual(await signatures.verify(claims), [false, false, false, false, true, true]);
});

test('many at the same time each get their own verdicts; so they do after a rest', async () => {
  const signatures = new Signatures({ idle: 1 });
  for (let round = 0; round < 3; round++) {
    const all = await Promise.all(
      Array.from({ length: 10 }, async (_, n) => {
        const claims = claimsOf(20);
        claims[n] = [other.publicKeyBase64, claims[n]![1], claims[n]![2]];
        return (await signatures.verify(claims)).indexOf(false);
      }),
    );
    assert.deepEqual(all, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    await new Promise((resolve) => setTimeout(resolve, round * 20));
  }
});
