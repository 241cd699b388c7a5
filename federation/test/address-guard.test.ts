import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AddressGuard } from '../outbound/address-guard.ts';

test('private addresses are refused in every notation', () => {
  const guard = new AddressGuard();
  const refused = [
    '127.0.0.1',
    '10.1.2.3',
    '172.31.255.255',
    '192.168.1.1',
    '169.254.169.254',
    '100.64.0.1',
    '0.0.0.0',
    '224.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    'fe80::1%eth0',
    'fd00::1',
    'ff02::1',
    // The same addresses by way of IPv6: compatible, mapped, translated, NAT64, 6to4, Teredo, ISATAP.
    '::127.0.0.1',
    '::ffff:127.0.0.1',
    '::ffff:7f00:1',
    '::ffff:0:10.0.0.1',
    '64:ff9b::169.254.169.254',
    '64:ff9b:1::1',
    '2002:7f00:1::',
    '2002:c0a8:101::1',
    '2001:0:7f00:1::',
    '2001:0:4136:e378:8000:63bf:80ff:fffe',
    '2606:4700::5efe:192.168.0.1',
    'localhost',
    '',
  ];
  for (const address of refused) assert.equal(guard.allows(address), false, address);
});

test('public addresses are allowed, also by NAT64', () => {
  const guard = new AddressGuard();
  for (const address of [
    '1.1.1.1',
    '172.32.0.1',
    '2606:4700::1111',
    '::ffff:1.1.1.1',
    '64:ff9b::8.8.8.8',
    '2002:808:808::1',
  ])
    assert.equal(guard.allows(address), true, address);
});

test('configured ranges add to and except from what is refused', () => {
  const guard = new AddressGuard({
    deny: ['0.0.0.0/0', '2606:4700::/32'],
    allow: ['10.0.0.0/24', '2606:4700::1'],
  });
  assert.equal(guard.allows('1.1.1.1'), false);
  assert.equal(guard.allows('10.0.0.9'), true);
  assert.equal(guard.allows('::ffff:10.0.0.9'), true);
  assert.equal(guard.allows('2606:4700::1'), true);
  assert.equal(guard.allows('2606:4700::2'), false);
  assert.equal(new AddressGuard({ deny: [] }).allows('127.0.0.1'), true);
});

test('a range that is none is refused when the guard is made', () => {
  for (const range of ['10.0.0.0/33', 'example.org', '10.0.0/8', '::/129', '1.2.3.4/x'])
    assert.throws(() => new AddressGuard({ deny: [range] }), /not an address range/, range);
});
