import fc from 'fast-check';
import type { JsonObject, JsonValue } from '../event.ts';

/** Keys that JavaScript treats in ways of its own, or that sort differently by UTF-16 unit and by code point. */
const oddKeys = [
  '__proto__',
  'constructor',
  'toJSON',
  'hasOwnProperty',
  '0',
  '10',
  '9',
  '4294967295',
  '-1',
  '',
];
const sortingKeys = ['\ud83d\ude00', '\uff5e', '\ue000', '\ud7ff', 'a', 'ab', 'B', '\u0001', '"', '\\ud800'];

const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string(), fc.constantFrom(...sortingKeys));
export const key = fc.oneof(fc.constantFrom(...oddKeys, ...sortingKeys), text);

function jsonOf(number: fc.Arbitrary<number>): fc.Arbitrary<JsonValue> {
  return fc.letrec<{ value: JsonValue; object: JsonObject }>((tie) => ({
    value: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      fc.oneof(text, number, fc.boolean(), fc.constant(null)),
      fc.array(tie('value'), { maxLength: 6 }),
      tie('object'),
    ),
    // From entries, so that `__proto__` becomes a member.
    object: fc
      .array(fc.tuple(key, tie('value')), { maxLength: 20 })
      .map((entries) => Object.fromEntries(entries)),
  })).value;
}

/** Any value that canonical JSON can write. */
export const canonicalValue = jsonOf(fc.oneof(fc.maxSafeInteger(), fc.nat(3), fc.constant(-0)));

/** Any value that JSON can write. */
export const jsonValue = jsonOf(
  fc.oneof(fc.maxSafeInteger(), fc.double({ noNaN: true, noDefaultInfinity: true })),
);

export const jsonObject = fc.dictionary(key, jsonValue, { noNullPrototype: true, maxKeys: 8 });

/** A server name of each kind. */
export const serverName = fc
  .tuple(
    fc.oneof(
      fc.domain(),
      fc.ipV4(),
      fc.ipV6().map((address) => `[${address}]`),
      fc.constantFrom('localhost', 'MATRIX.ORG'),
    ),
    fc.option(fc.integer({ min: 0, max: 65_535 })),
  )
  .map(([host, port]) => (port === null ? host : `${host}:${port}`));
