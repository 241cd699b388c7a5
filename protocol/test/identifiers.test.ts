import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  isEventId,
  isHashRoomId,
  isIpLiteral,
  isLocalpart,
  isOpaqueId,
  isRoomAlias,
  isRoomId,
  isServerName,
  parseMxcUri,
  parseRoomAlias,
  parseServerName,
  parseUserId,
  serverNameOf,
} from '../identifiers.ts';
import { serverName } from './arbitraries.ts';

const localpart = fc
  .string({ unit: 'binary', minLength: 1, maxLength: 20 })
  .filter((text) => !text.includes(':') && !text.includes('\0'));

describe('server names', () => {
  it('are taken apart', () => {
    assert.deepEqual(parseServerName('matrix.org'), { host: 'matrix.org', port: undefined });
    assert.deepEqual(parseServerName('matrix.org:8888'), { host: 'matrix.org', port: 8888 });
    assert.deepEqual(parseServerName('1.2.3.4:1234'), { host: '1.2.3.4', port: 1234 });
    assert.deepEqual(parseServerName('[1234:5678::abcd]'), { host: '[1234:5678::abcd]', port: undefined });
    assert.deepEqual(parseServerName('[1234:5678::abcd]:5678'), { host: '[1234:5678::abcd]', port: 5678 });
  });

  it('are known whatever host and port', () => {
    fc.assert(fc.property(serverName, (name) => assert.ok(isServerName(name))));
  });

  for (const name of [
    '',
    ':80',
    'a b',
    'a:',
    'a:x',
    'a:123456',
    'a:65536',
    '[::1',
    '[::g]',
    '::1',
    'a/b',
    'a@b',
    'ä.de',
    'a\n',
    'a:80\n',
    '[fe80::1%eth0]',
    'a'.repeat(256),
  ])
    it(`are not ${JSON.stringify(name.slice(0, 20))}`, () => {
      assert.equal(isServerName(name), false);
    });

  it('tell addresses from names', () => {
    for (const host of ['1.2.3.4', '[::1]']) assert.ok(isIpLiteral(host));
    for (const host of ['example.org', '1.2.3', '256.1.1.1', '::1']) assert.equal(isIpLiteral(host), false);
  });
});

describe('user ids', () => {
  it('are taken apart, of the historical grammar too', () => {
    fc.assert(
      fc.property(localpart, serverName, (local, server) => {
        const id = `@${local}:${server}`;
        fc.pre(Buffer.byteLength(id) <= 255);
        assert.deepEqual(parseUserId(id), { localpart: local, serverName: server });
        assert.equal(serverNameOf(id), server);
      }),
    );
    assert.deepEqual(parseUserId('@:a.org'), { localpart: '', serverName: 'a.org' });
  });

  for (const id of ['', '@', '@a', 'a:b', '@a:', '!a:b', '@a\0:b', '@\ud800:b', '@a:b c', '@a:b:c'])
    it(`are not ${JSON.stringify(id)}`, () => {
      assert.equal(parseUserId(id), undefined);
    });

  it('have 255 bytes at the most, not characters', () => {
    assert.ok(parseUserId(`@${'a'.repeat(251)}:bc`));
    assert.equal(parseUserId(`@${'a'.repeat(252)}:bc`), undefined);
    assert.ok(parseUserId(`@${'\u20ac'.repeat(83)}a:bcd`));
    assert.equal(parseUserId(`@${'\u20ac'.repeat(84)}a:bcd`), undefined);
  });

  it('have strict localparts when new', () => {
    for (const local of ['alice', 'a.b_c=d-e/f+0']) assert.ok(isLocalpart(local));
    for (const local of ['', 'Alice', 'a b', 'a:b', 'ä', 'a\n']) assert.equal(isLocalpart(local), false);
  });
});

describe('room ids, aliases and event ids', () => {
  const hash = 'Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ';

  it('are known by their forms', () => {
    for (const id of ['!a:b', '!ä \n:b:80', `!${hash}`]) assert.ok(isRoomId(id), id);
    for (const id of ['!', '!a', '!a:', `!${hash}=`, `!${hash}x`, '#a:b', '!a\0:b', `!${'a'.repeat(255)}:b`])
      assert.equal(isRoomId(id), false, id);
    assert.ok(isHashRoomId(`!${hash}`));
    assert.equal(isHashRoomId('!a:b'), false);
    for (const alias of ['#a:b', '#\u{1f600} x:b', '##:b']) assert.ok(isRoomAlias(alias), alias);
    for (const alias of ['#:b', '#a', '!a:b', '#a\0:b', '#a:b c'])
      assert.equal(isRoomAlias(alias), false, alias);
    for (const id of ['$a:b', `$${hash}`, '$CD66HAED5npg6074c6pDtLKalHjVfYb2q4Q3LZgrW6o'])
      assert.ok(isEventId(id), id);
    for (const id of ['', '$', 'a', '$\0', '$\ud800', `$${'a'.repeat(255)}`])
      assert.equal(isEventId(id), false, id);
  });

  it('take aliases apart', () => {
    assert.deepEqual(parseRoomAlias('#a:b:80'), { localpart: 'a', serverName: 'b:80' });
  });
});

describe('media ids and opaque ids', () => {
  it('are known', () => {
    assert.deepEqual(parseMxcUri('mxc://a.org:80/Ab_-9'), { serverName: 'a.org:80', mediaId: 'Ab_-9' });
    for (const id of ['a', 'A.b_c~d-0', 'a'.repeat(255)]) assert.ok(isOpaqueId(id));
    for (const id of ['', 'a/b', 'a b', 'ä', 'a'.repeat(256)]) assert.equal(isOpaqueId(id), false);
  });

  for (const uri of [
    '',
    'mxc://',
    'mxc://a',
    'mxc://a/',
    'mxc:///b',
    'mxc://a/../b',
    'mxc://a/b/c',
    'mxc://a b/c',
    'mxc://../c%2f',
    'http://a/b',
    'mxc://a/b\n',
  ])
    it(`are not ${JSON.stringify(uri)}`, () => {
      assert.equal(parseMxcUri(uri), undefined);
    });
});

it('takes any string without a throw', () => {
  const parsers = [
    parseUserId,
    parseRoomAlias,
    parseServerName,
    parseMxcUri,
    isRoomId,
    isEventId,
    isOpaqueId,
    serverNameOf,
  ];
  fc.assert(
    fc.property(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('', '@', '!', '#', '$', 'mxc://'),
      (text, sigil) => {
        for (const parse of parsers) parse(sigil + text);
      },
    ),
  );
});
