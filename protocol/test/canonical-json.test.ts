import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
// @ts-expect-error it has no types
import canonicaljson from 'canonicaljson';
import fc from 'fast-check';
import { canonicalJson, MAX_DEPTH } from '../canonical-json.ts';
import type { JsonValue } from '../event.ts';
import { decodeJson } from '../json.ts';
import { canonicalValue, jsonValue } from './arbitraries.ts';

const vectors: Array<{ json: string; canonical: string }> = JSON.parse(
  readFileSync(new URL('vectors/canonical-json.json', import.meta.url), 'utf8'),
);
const badJson = { name: 'MatrixError', errcode: 'M_BAD_JSON' };

/** As slow and plain as the spec's own words. */
function reference(value: JsonValue): string {
  if (Array.isArray(value)) return `[${value.map(reference).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const points = (text: string) => Array.from(text, (char) => char.codePointAt(0)!);
  const members = Object.entries(value).sort(([a], [b]) => {
    const [x, y] = [points(a), points(b)];
    const at = x.findIndex((point, index) => point !== y[index]);
    return at === -1 ? x.length - y.length : x[at]! - (y[at] ?? -1);
  });
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${reference(member)}`).join(',')}}`;
}

describe('canonical JSON', () => {
  for (const { json, canonical } of vectors)
    it(`writes the spec's example ${canonical.slice(0, 40)}`, () => {
      assert.equal(canonicalJson(JSON.parse(json)), canonical);
    });

  it('is what the definition says for any value, and stays so when read again', () => {
    fc.assert(
      fc.property(canonicalValue, (value) => {
        const canonical = canonicalJson(value);
        assert.equal(canonical, reference(value));
        assert.equal(canonicalJson(decodeJson(canonical)), canonical);
      }),
      { numRuns: 1000 },
    );
  });

  it('agrees with the npm package canonicaljson where that is right', () => {
    const wrong = /\\u00|\x7f|"(__proto__|constructor|toJSON)":/;
    fc.assert(
      fc.property(canonicalValue, (value) => {
        const canonical = canonicalJson(value);
        fc.pre(!wrong.test(canonical));
        assert.equal(canonicaljson.stringify(value), canonical);
      }),
    );
  });

  it('leaves the value as it was', () => {
    fc.assert(
      fc.property(canonicalValue, (value) => {
        const before = JSON.stringify(value);
        canonicalJson(value);
        assert.equal(JSON.stringify(value), before);
      }),
    );
  });

  it('sorts keys beyond U+FFFF last', () => {
    assert.equal(canonicalJson({ '\u{1f600}': 1, '\uff5e': 2, a: 3 }), '{"a":3,"\uff5e":2,"\u{1f600}":1}');
  });

  it('sorts keys that look like array indices as text', () => {
    assert.equal(canonicalJson({ 9: 1, 10: 2, '-': [{ 1: 3, 0: 4 }] }), '{"-":[{"0":4,"1":3}],"10":2,"9":1}');
  });

  it('keeps a __proto__ member', () => {
    assert.equal(canonicalJson(JSON.parse('{"b":{"__proto__":{"a":1}}}')), '{"b":{"__proto__":{"a":1}}}');
  });

  it('writes control characters the shortest way', () => {
    assert.equal(
      canonicalJson('\b\t\n\f\r"\\/\0\v\x1f\x7f\u2028'),
      '"\\b\\t\\n\\f\\r\\"\\\\/\\u0000\\u000b\\u001f\x7f\u2028"',
    );
  });

  it('leaves out undefined members', () => {
    assert.equal(canonicalJson({ b: undefined, a: { c: undefined } }), '{"a":{}}');
  });

  for (const number of [1.5, 2 ** 53, -(2 ** 53), 1e300, Number.NaN, Number.POSITIVE_INFINITY])
    it(`refuses ${number}`, () => {
      assert.throws(() => canonicalJson({ a: [number] }), badJson);
      assert.throws(() => canonicalJson({ 1: number }), badJson);
    });

  it('writes the numbers of old rooms when lax', () => {
    assert.equal(
      canonicalJson({ b: 1.5, a: 1e17, 1: -0 }, { lax: true }),
      '{"1":0,"a":100000000000000000,"b":1.5}',
    );
    assert.throws(() => canonicalJson(Number.NaN, { lax: true }), badJson);
    fc.assert(
      fc.property(jsonValue, (value) => assert.equal(canonicalJson(value, { lax: true }), reference(value))),
    );
  });

  it('refuses lone surrogates in values and keys, and takes what only looks like one', () => {
    for (const lone of ['\ud800', 'a\udfff', '\udc00\ud800']) {
      assert.throws(() => canonicalJson([lone]), badJson);
      assert.throws(() => canonicalJson({ [lone]: 1 }), badJson);
    }
    assert.equal(canonicalJson('\\ud800'), '"\\\\ud800"');
  });

  it('refuses what is no JSON', () => {
    for (const value of [undefined, () => 1, Symbol('s'), 1n, [undefined], { toJSON: () => 1 }])
      assert.throws(() => canonicalJson(value), badJson);
  });

  it('refuses deep nesting before the stack ends', () => {
    const nest = (levels: number, key: string) => {
      let value: JsonValue = 1;
      for (let i = 0; i < levels; i++) value = i % 2 ? [value] : { [key]: value };
      return value;
    };
    for (const key of ['a', '0']) {
      assert.equal(JSON.parse(canonicalJson(nest(MAX_DEPTH, key))) !== undefined, true);
      for (const levels of [MAX_DEPTH + 1, 100_000])
        assert.throws(() => canonicalJson(nest(levels, key)), badJson);
    }
  });
});
