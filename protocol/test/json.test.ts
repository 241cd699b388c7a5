import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { canonicalJson, MAX_DEPTH } from '../canonical-json.ts';
import { MatrixError } from '../errors.ts';
import { parseJson } from '../json.ts';
import { canonicalValue, jsonValue } from './arbitraries.ts';

const strict = { strict: true };
const badJson = { name: 'MatrixError', errcode: 'M_BAD_JSON' };
const notJson = { name: 'MatrixError', errcode: 'M_NOT_JSON' };

function passes(action: () => unknown): boolean {
  try {
    action();
    return true;
  } catch (error) {
    assert.ok(error instanceof MatrixError);
    return false;
  }
}

describe('reading JSON', () => {
  it('reads what was written', () => {
    fc.assert(
      fc.property(jsonValue, fc.constantFrom(0, 1, '\t'), (value, indent) => {
        const text = JSON.stringify(value, undefined, indent);
        assert.equal(JSON.stringify(parseJson(text)), JSON.stringify(value));
      }),
    );
  });

  for (const text of ['', '{', '{"a":1}x', "{'a':1}", '[1,]', '01', 'NaN', 'Infinity', '\u00a0{}', '"\n"'])
    it(`answers M_NOT_JSON to ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseJson(text), notJson);
    });

  it('limits nesting, whatever it is made of', () => {
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
      ['[1,{"b":0,"a":', '}]'],
    ] as const) {
      const nest = (times: number) => `${open.repeat(times)}1${close.repeat(times)}`;
      const levels = open.length > 6 ? 2 : 1;
      assert.doesNotThrow(() => parseJson(nest(MAX_DEPTH / levels)));
      assert.throws(() => parseJson(nest(MAX_DEPTH / levels + 1)), badJson);
      assert.throws(() => parseJson(nest(100_000)), badJson);
    }
    assert.doesNotThrow(() => parseJson(JSON.stringify('['.repeat(10_000))));
    assert.doesNotThrow(() => parseJson(`[${'[],'.repeat(10_000)}1]`));
  });

  it('takes no key for another one that it read before', () => {
    // Each of these makes V8's own parser read the next one wrong: its key as the one that is in the text before.
    const inTurn = [
      ['{"memo":1,"a\\\\":2}', '{"memo":1,"a\\"":2}'],
      ['{"x":0,"membersh\\\\u":1}', '{"x":0,"membersh\\u0069p":"join","y\\n" : [{"z\\t":"\\":"}]}'],
      ['{"r":0,"\\\\":1}', '{"r":0,"\\ud83d\\ude00":1,"__proto__":2,"7":1.5}'],
      ['{"d":0,"\\\\":1}', '{"d":0,"\\n":1,"e":"}","\\u000a":{"\\\\":[]}}'],
    ];
    const expected = [
      { memo: 1, 'a"': 2 },
      { x: 0, membership: 'join', 'y\n': [{ 'z\t': '":' }] },
      { r: 0, '😀': 1, ['__proto__']: 2, 7: 1.5 },
      { d: 0, '\n': { '\\': [] }, e: '}' },
    ];
    for (const [i, texts] of inTurn.entries()) {
      for (let times = 0; times < 3; times++) for (const text of texts) parseJson(text);
      assert.deepEqual(parseJson(texts[1]!), expected[i]);
      assert.deepEqual(Object.keys(parseJson(texts[1]!) as object), Object.keys(expected[i]!));
    }
  });

  it('makes __proto__ a member and no prototype', () => {
    const value = parseJson('{"__proto__":{"admin":true}}') as Record<string, unknown>;
    assert.equal(value.admin, undefined);
    assert.ok(Object.hasOwn(value, '__proto__'));
    assert.equal(({} as Record<string, unknown>).admin, undefined);
  });
});

describe('reading JSON strictly', () => {
  const refused = [
    '1.0',
    '-1.0',
    '1e3',
    '1E2',
    '0e0',
    '-0.0',
    '1.5',
    '9007199254740992',
    '-9007199254740992',
    '1e400',
  ];
  const places = [
    (n: string) => n,
    (n: string) => ` ${n}`,
    (n: string) => `[${n}]`,
    (n: string) => `[1, ${n}]`,
  ];
  for (const number of refused)
    it(`refuses ${number} wherever it stands`, () => {
      for (const place of [
        ...places,
        (n: string) => `{"a":\n${n}}`,
        (n: string) => `{"a":{"b":[{"c" : ${n} }]}}`,
      ]) {
        assert.throws(() => parseJson(place(number), strict), badJson);
        assert.doesNotThrow(() => parseJson(place(number)));
      }
    });

  it('takes the same in strings', () => {
    for (const text of [
      '{"a":":1.0","b":"[1e3"}',
      '{":1.0":1}',
      '"1.0"',
      '{"a":0,"b":-1,"c":9007199254740991}',
    ])
      assert.doesNotThrow(() => parseJson(text, strict));
  });

  it('refuses escaped lone surrogates, not pairs', () => {
    for (const text of ['"\\ud800"', '{"\\uDFFF":1}', '["\\udc00\\ud800"]']) {
      assert.throws(() => parseJson(text, strict), badJson);
      assert.doesNotThrow(() => parseJson(text));
    }
    assert.equal(parseJson('"\\ud83d\\ude00 \\\\ud800"', strict), '\u{1f600} \\ud800');
  });

  it('takes exactly what canonical JSON can write', () => {
    fc.assert(
      fc.property(canonicalValue, (value) => {
        parseJson(canonicalJson(value), strict);
      }),
    );
    fc.assert(
      fc.property(jsonValue, (value) => {
        // JSON.stringify writes integers as such, so here the numbers alone decide.
        const text = JSON.stringify(value);
        assert.equal(
          passes(() => parseJson(text, strict)),
          passes(() => canonicalJson(parseJson(text))),
        );
      }),
    );
  });

  it('throws nothing but a MatrixError at any text', () => {
    const pieces = fc.constantFrom(
      '{',
      '}',
      '[',
      ']',
      '"',
      ':',
      ',',
      '1',
      '-',
      '.',
      'e',
      '\\',
      'u',
      'd8',
      'true',
      ' ',
    );
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 30 }), (text) => {
        passes(() => parseJson(text.join(''), strict));
      }),
      { numRuns: 2000 },
    );
  });
});
