import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { cleanContentType, cleanFilename, contentDisposition, filenameOf } from '../content-disposition.ts';

describe('Content-Disposition', () => {
  it('is inline for types that cannot run anything only, however they are written', () => {
    for (const type of ['image/png', 'Text/Plain; charset=utf-8', 'video/mp4'])
      assert.equal(contentDisposition(type, null), 'inline', type);
    for (const type of [
      'text/html',
      'image/svg+xml',
      'image/svg',
      'application/pdf',
      'application/xhtml+xml',
      'application/javascript',
      'text/javascript',
      'text/xml',
      'application/xml',
      'application/rss+xml',
      'text/xsl',
      'multipart/x-mixed-replace',
      'application/octet-stream',
      'image/heic',
      'image/avif, text/html',
      'text/plain; a=b, text/html',
      'x',
    ])
      assert.equal(contentDisposition(type, null), 'attachment', type);
  });

  it('brings every file name to the other side', () => {
    for (const name of [
      'ascii',
      'with spaces.txt',
      'semi;colons;',
      'quo"te\\back',
      '\u{1f414}',
      "it's 100% (ok)*",
      'ünï',
      '\u2615 "x"; filename=evil',
    ])
      assert.equal(filenameOf(contentDisposition('image/png', name)), name);
  });

  it('is read as others write it', () => {
    const cases: Array<[string | undefined, string | null]> = [
      [undefined, null],
      ['inline', null],
      ['attachment; filename=plain.txt', 'plain.txt'],
      ["attachment; filename=fallback; filename*=UTF-8'en'%e2%98%95", '☕'],
      ["inline; filename*=utf-8''%ff%fe", null],
      [`inline; filename="${Buffer.from('☕').toString('latin1')}"`, '☕'],
      [`inline; filename="${'x'.repeat(5000)}"`, null],
    ];
    for (const [header, name] of cases) assert.equal(filenameOf(header), name, String(header));
  });

  it('takes no control characters, no halves of characters and no endless names', () => {
    assert.equal(cleanFilename('a\r\nb\0c\u2028'), 'abc');
    assert.equal(cleanFilename('\ud800'), '\ufffd');
    assert.equal(cleanFilename(''), null);
    assert.equal([...cleanFilename('\u{1f414}'.repeat(999))!].length, 255);
  });

  it('goes with a type that is one', () => {
    assert.equal(cleanContentType('text/plain; charset=utf-8'), 'text/plain; charset=utf-8');
    for (const type of [
      undefined,
      '',
      'text',
      'a/b\r\nset-cookie: x',
      'text/plain, text/html',
      `a/${'b'.repeat(300)}`,
    ])
      assert.equal(cleanContentType(type), 'application/octet-stream');
  });
});
