import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { stringify } from 'yaml';
import { loadRegistrations, readRegistration } from '../registration.ts';
import { Appservices } from '../registry.ts';

const MINIMAL = {
  id: 'irc',
  url: null,
  as_token: 'as',
  hs_token: 'hs',
  sender_localpart: '_irc_bot',
  namespaces: {},
};

const read = (more: object) => readRegistration(stringify({ ...MINIMAL, ...more }), 'irc.yaml');

describe('a registration file', () => {
  const folder = mkdtempSync(join(tmpdir(), 'trellis-registrations-'));
  after(() => rmSync(folder, { recursive: true }));

  it('needs no more than the specification asks for', () => {
    const { url, users, rateLimited, protocols, receiveEphemeral } = read({});
    assert.deepEqual(
      { url, users, rateLimited, protocols, receiveEphemeral },
      { url: undefined, users: [], rateLimited: true, protocols: [], receiveEphemeral: false },
    );
    // Nothing behind a name is null to YAML; bridges add options of their own.
    const empty = { namespaces: { users: null, rooms: null }, protocols: null, rate_limited: null, url: '' };
    assert.equal(read({ ...empty, 'soru.own': { x: 1 } }).url, undefined);
  });

  it('says all that it can', () => {
    const users = [{ regex: '@_irc_.*', exclusive: true }, { regex: '@free_.*' }];
    const registration = read({
      url: 'https://bridge.example.org/irc//',
      namespaces: { users, aliases: [{ regex: '#_irc_.*' }] },
      rate_limited: false,
      receive_ephemeral: true,
      protocols: ['irc'],
      'de.sorunome.msc2409.push_ephemeral': true,
      'org.matrix.msc3202': true,
      'io.element.msc4190': true,
    });
    assert.equal(registration.url, 'https://bridge.example.org/irc');
    assert.deepEqual(registration.users, [users[0], { ...users[1], exclusive: false }]);
    assert.deepEqual(registration.aliases, [{ regex: '#_irc_.*', exclusive: false }]);
    const { rateLimited, receiveEphemeral, pushEphemeral, deviceNews, protocols } = registration;
    assert.deepEqual(
      [rateLimited, receiveEphemeral, pushEphemeral, deviceNews, protocols],
      [false, true, true, true, ['irc']],
    );
  });

  it('is refused with the file, the option and what is wrong', () => {
    const problems: Array<[object, RegExp]> = [
      [{ id: undefined }, /irc\.yaml:\n {2}the file: id is missing/],
      [{ as_token: 5 }, /as_token: must be string/],
      [{ hs_token: 'two words' }, /hs_token: .*no spaces/],
      [{ url: 'bridge:9000' }, /url: must be an http or https URL/],
      [{ url: 'http://x/?a=b' }, /url: must be an http or https URL/],
      [{ sender_localpart: '@bot:x' }, /sender_localpart: .*_irc_bot/],
      [{ namespaces: { users: [{ exclusive: true }] } }, /namespaces\.users\.0: regex is missing/],
      [
        { namespaces: { rooms: [{ regex: '(' }] } },
        /namespaces\.rooms\.0\.regex: Invalid regular expression/,
      ],
      [{ rate_limited: 'no' }, /rate_limited: must be boolean/],
    ];
    for (const [more, message] of problems)
      assert.throws(() => read(more), { name: 'RegistrationError', message }, JSON.stringify(more));
    assert.throws(() => readRegistration('a: [', 'irc.yaml'), /irc\.yaml: this is not YAML/);
    assert.throws(() => readRegistration('[]', 'irc.yaml'), /irc\.yaml:\n {2}the file/);
  });

  it('shares neither id nor as_token with another', () => {
    const file = (name: string, more: object) => {
      writeFileSync(join(folder, name), stringify({ ...MINIMAL, ...more }));
      return join(folder, name);
    };
    const first = file('a.yaml', {});
    const other = file('b.yaml', { id: 'other', as_token: 'as2' });
    assert.equal(loadRegistrations([first, other]).length, 2);
    assert.throws(
      () => loadRegistrations([first, file('c.yaml', { as_token: 'x' })]),
      /c\.yaml: id: .*a\.yaml/,
    );
    assert.throws(
      () => loadRegistrations([first, file('d.yaml', { id: 'x' })]),
      /d\.yaml: as_token: .*a\.yaml/,
    );
    assert.throws(() => loadRegistrations([join(folder, 'none.yaml')]), /none\.yaml/);
  });
});

describe('application services', () => {
  const services = new Appservices(
    [
      read({
        namespaces: {
          users: [{ regex: '@_irc_', exclusive: true }, { regex: '@.*' }],
          aliases: [{ regex: '#_irc_.*', exclusive: true }, { regex: '#open_.*' }],
        },
      }),
    ],
    'example.org',
  );

  it('have the local users of their namespaces', () => {
    assert.ok(services.actsAs('irc', '@_irc_x:example.org'));
    assert.ok(services.actsAs('irc', '@anyone:example.org'));
    assert.ok(services.actsAs('irc', '@_irc_bot:example.org'));
    assert.ok(!services.actsAs('irc', '@_irc_x:elsewhere.org'));
    assert.ok(!services.actsAs('none', '@_irc_x:example.org'));
    assert.equal(services.exclusiveOwner('@_irc_x:example.org')?.id, 'irc');
    assert.equal(services.exclusiveOwner('@anyone:example.org'), undefined);
    assert.equal(services.exclusiveOwner('@x_irc_:example.org'), undefined);
  });

  it('have aliases for themselves or with others', () => {
    assert.equal(services.exclusiveAliasOwner('#_irc_a:example.org'), 'irc');
    assert.equal(services.exclusiveAliasOwner('#open_a:example.org'), undefined);
    assert.ok(services.mayHaveAlias('irc', '#open_a:example.org'));
    assert.ok(!services.mayHaveAlias('irc', '#closed:example.org'));
  });

  it('are known by their token', () => {
    assert.equal(services.byToken('as')?.id, 'irc');
    assert.equal(services.byToken('hs'), undefined);
    assert.equal(new Appservices([], 'example.org').byToken('as'), undefined);
  });
});
