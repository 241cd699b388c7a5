import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { JsonObject } from '../event.ts';
import { redact } from '../redaction.ts';
import { knownRoomVersions, roomVersion } from '../room-versions.ts';
import { jsonObject, jsonValue } from './arbitraries.ts';

const ALWAYS = [
  'type',
  'room_id',
  'sender',
  'content',
  'hashes',
  'signatures',
  'depth',
  'event_id',
  'state_key',
  'prev_events',
  'auth_events',
  'origin_server_ts',
];
const UNTIL_10 = ['prev_state', 'origin', 'membership'];
const LEVELS = [
  'ban',
  'events',
  'events_default',
  'kick',
  'redact',
  'state_default',
  'users',
  'users_default',
];

/** Members of content that stay, by event type and from which version to which. */
const KEPT: Array<[type: string, keys: string[], from: number, to: number]> = [
  ['m.room.member', ['membership'], 1, 8],
  ['m.room.member', ['membership', 'join_authorised_via_users_server'], 9, 10],
  ['m.room.member', ['membership', 'join_authorised_via_users_server', 'third_party_invite'], 11, 12],
  ['m.room.create', ['creator'], 1, 10],
  ['m.room.join_rules', ['join_rule'], 1, 7],
  ['m.room.join_rules', ['join_rule', 'allow'], 8, 12],
  ['m.room.power_levels', LEVELS, 1, 10],
  ['m.room.power_levels', [...LEVELS, 'invite'], 11, 12],
  ['m.room.aliases', ['aliases'], 1, 5],
  ['m.room.aliases', [], 6, 12],
  ['m.room.history_visibility', ['history_visibility'], 1, 12],
  ['m.room.redaction', [], 1, 10],
  ['m.room.redaction', ['redacts'], 11, 12],
  ['m.room.message', [], 1, 12],
  ['m.room.server_acl', [], 1, 12],
  ['constructor', [], 1, 12],
];
const EVERY_KEY = [
  ...new Set([...KEPT.flatMap(([, keys]) => keys), 'body', 'third_party_invite', 'allow', '__proto__']),
];

function fill(keys: readonly string[]): JsonObject {
  return Object.fromEntries(keys.map((key) => [key, { signed: { token: key }, display_name: 'x' }]));
}

describe('redaction', () => {
  for (const [type, keys, from, to] of KEPT)
    for (let number = from; number <= to; number++)
      it(`leaves ${keys.join(', ') || 'nothing'} of ${type} in room version ${number}`, () => {
        const content = fill(EVERY_KEY);
        const left = redact({ type, content }, roomVersion(`${number}`)!).content as JsonObject;
        assert.deepEqual(Object.keys(left).sort(), [...keys].sort());
        for (const key of keys)
          assert.deepEqual(
            left[key],
            key === 'third_party_invite' ? { signed: { token: key } } : content[key],
          );
      });

  for (const number of ['11', '12'])
    it(`leaves all of m.room.create in room version ${number}`, () => {
      const content = fill(EVERY_KEY);
      assert.deepEqual(redact({ type: 'm.room.create', content }, roomVersion(number)!).content, content);
    });

  for (const version of knownRoomVersions())
    it(`leaves the members of an event that room version ${version.id} names`, () => {
      const expected = version.redactionRules === '11' ? ALWAYS : [...ALWAYS, ...UNTIL_10];
      const event = {
        ...fill([...ALWAYS, ...UNTIL_10, 'redacts', 'unsigned', 'body', '__proto__']),
        type: 'a',
      };
      assert.deepEqual(Object.keys(redact(event, version)).sort(), [...expected].sort());
    });

  it('leaves of a third-party invite what is signed, if it is an object', () => {
    const left = (invite: unknown) =>
      redact(
        { type: 'm.room.member', content: { third_party_invite: invite as JsonObject } },
        roomVersion('11')!,
      ).content;
    assert.deepEqual(left({ signed: 1, other: 2 }), { third_party_invite: { signed: 1 } });
    assert.deepEqual(left({ other: 2 }), { third_party_invite: {} });
    assert.deepEqual(left('text'), {});
    assert.deepEqual(left([]), {});
  });

  it('changes nothing the second time, nor what it is given, and takes any object', () => {
    const types = fc.constantFrom(...KEPT.map(([type]) => type));
    const contents = fc.oneof(fc.dictionary(fc.constantFrom(...EVERY_KEY), jsonValue), jsonObject, jsonValue);
    fc.assert(
      fc.property(
        jsonObject,
        types,
        contents,
        fc.constantFrom(...knownRoomVersions()),
        (rest, type, content, version) => {
          const event = { ...rest, type, content };
          const before = JSON.stringify(event);
          const redacted = redact(event, version);
          assert.deepEqual(redact(redacted, version), redacted);
          assert.equal(JSON.stringify(event), before);
        },
      ),
    );
  });
});
