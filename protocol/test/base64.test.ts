import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { decodeBase64, encodeBase64, encodeBase64Url } from '../base64.ts';

describe('unpadded Base64', () => {
  const examples = {
    '': '',
    f: 'Zg',
    fo: 'Zm8',
    foo: 'Zm9v',
    foob: 'Zm9vYg',
    fooba: 'Zm9vYmE',
    foobar: 'Zm9vYmFy',
  };
  for (const [text, base64] of Object.entries(examples))
    it(`writes and reads the spec's example ${JSON.stringify(text)}`, () => {
      assert.equal(encodeBase64(new TextEncoder().encode(text)), base64);
      assert.equal(decodeBase64(base64)?.toString(), text);
    });

  it('reads both alphabets, padded or not', () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        const buffer = Buffer.from(bytes);
        assert.doesNotMatch(encodeBase64(bytes), /[^A-Za-z0-9+/]/);
        assert.doesNotMatch(encodeBase64Url(bytes), /[^A-Za-z0-9_-]/);
        for (const text of [encodeBase64(bytes), encodeBase64Url(bytes), buffer.toString('base64')])
          assert.deepEqual(decodeBase64(text), buffer);
      }),
    );
  });

  for (const text of ['a', 'Zm9v\n', ' Zg', 'Zg===', '=', '=Zg', 'Z=g', 'Zm9v!', '\u00e4bc', 'abcde'])
    it(`refuses ${JSON.stringify(text)}`, () => {
      assert.equal(decodeBase64(text), undefined);
    });
});
