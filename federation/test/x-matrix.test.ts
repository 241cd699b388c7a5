import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatXMatrix, parseXMatrix, signedText } from '../x-matrix.ts';

const params = { origin: 'one.test:8448', destination: 'two.test', key: 'ed25519:a_1', sig: 'abc+/def' };

test('what is written is read back', () => {
  assert.deepEqual(parseXMatrix(formatXMatrix(params)), params);
});

test('headers of older and of careful servers are read', () => {
  const same = [
    // Without quotes, colons included.
    'X-Matrix origin=one.test:8448,destination=two.test,key=ed25519:a_1,sig=abc+/def',
    // Spaces, tabs, case, order, unknown parameters.
    'x-matrix   SIG="abc+/def" ,\tKey="ed25519:a_1", origin="one.test:8448" ,Destination="two.test",extra="1"',
    // Escapes.
    'X-Matrix origin="one\\.test:8448",destination="two.test",key="ed25519\\:a_1",sig="abc+/def"',
  ];
  for (const header of same) assert.deepEqual(parseXMatrix(header), params, header);
  assert.equal(parseXMatrix('X-Matrix origin=a,key="k",sig="s"')?.destination, undefined);
  assert.equal(parseXMatrix('X-Matrix origin="[::1]:1",key="k",sig="s"')?.origin, '[::1]:1');
});

test('malformed headers are refused', () => {
  for (const header of [
    'Bearer abc',
    'X-Matrix',
    'X-Matrix ',
    'X-Matrixorigin=a,key=b,sig=c',
    'X-Matrix origin=a,key=b',
    'X-Matrix origin=a key=b sig=c',
    'X-Matrix origin="a,key="b",sig="c"',
    'X-Matrix origin="a",origin="b",key="k",sig="s"',
    'X-Matrix origin="a",key="k",sig="s",,',
    'X-Matrix =a,key="k",sig="s"',
    `X-Matrix origin="${'a'.repeat(5000)}",key="k",sig="s"`,
  ])
    assert.equal(parseXMatrix(header), undefined, header.slice(0, 60));
});

test('long runs of quotes and backslashes are read in linear time', () => {
  const started = performance.now();
  parseXMatrix(`X-Matrix origin="${'\\"'.repeat(2000)}`);
  parseXMatrix(`X-Matrix ${'a="",'.repeat(800)}`);
  assert.ok(performance.now() - started < 200);
});

test('the signed text is canonical', () => {
  const text = signedText({
    method: 'PUT',
    uri: '/a?b=c',
    origin: 'o',
    destination: 'd',
    content: '{"x":1}',
  });
  assert.equal(text, '{"content":{"x":1},"destination":"d","method":"PUT","origin":"o","uri":"/a?b=c"}');
  assert.equal(
    signedText({ method: 'GET', uri: '/', origin: 'o', destination: undefined, content: undefined }),
    '{"method":"GET","origin":"o","uri":"/"}',
  );
});
