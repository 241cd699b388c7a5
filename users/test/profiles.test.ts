import assert from 'node:assert/strict';
import { beforeEach, describe, it } from 'node:test';
import { type Profile, Profiles } from '../profiles.ts';
import { accountsOn, databaseForFile } from './fixture.ts';

const db = await databaseForFile();
const accounts = accountsOn(db);
const ALICE = (await accounts.create({ localpart: 'alice' })).userId;
const BOB = '@bob:elsewhere.example';
let asked: Array<[string, string | undefined]> = [];
let remoteAnswer: unknown = {};
const profiles = new Profiles({
  db,
  accounts,
  remote: {
    query: async (userId, field) => {
      asked.push([userId, field]);
      return remoteAnswer as Profile;
    },
  },
});

describe('profiles', () => {
  beforeEach(async () => {
    await profiles.erase(ALICE);
    asked = [];
  });

  it('keep values of any kind', async () => {
    const value = { deep: [1, 2.5, null, { '': 'x\0' }] };
    await profiles.set(ALICE, 'org.example.any', value);
    await profiles.set(ALICE, 'org.example.null', null);
    assert.deepEqual(await profiles.get(ALICE), { 'org.example.any': value, 'org.example.null': null });
    assert.equal(await profiles.getField(ALICE, 'org.example.null'), null);
  });

  it('lose a name that is set to nothing', async () => {
    for (const nothing of [null, '']) {
      await profiles.set(ALICE, 'displayname', 'Alice');
      await profiles.set(ALICE, 'displayname', nothing);
      await assert.rejects(profiles.getField(ALICE, 'displayname'), { errcode: 'M_NOT_FOUND' });
    }
    await profiles.delete(ALICE, 'displayname');
  });

  it('have limits: on keys, names, and the whole', async () => {
    for (const key of ['', 'Upper', 'a..b', '.a', 'a b', '__proto__', 'constructor', 'ä.b'])
      await assert.rejects(profiles.set(ALICE, key, 1), { errcode: 'M_INVALID_PARAM' }, key);
    await assert.rejects(profiles.set(ALICE, `a.${'b'.repeat(254)}`, 1), { errcode: 'M_KEY_TOO_LARGE' });
    await assert.rejects(profiles.set(ALICE, 'displayname', 'x'.repeat(257)), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(profiles.set(ALICE, 'displayname', 7), { errcode: 'M_INVALID_PARAM' });
    const half = 'x'.repeat(33_000);
    await profiles.set(ALICE, 'a.one', half);
    await assert.rejects(profiles.set(ALICE, 'a.two', half), { errcode: 'M_PROFILE_TOO_LARGE' });
    await profiles.set(ALICE, 'a.one', 'short');
    await profiles.set(ALICE, 'a.two', half);
  });

  it('stay within the limit when fields are set at the same time', async () => {
    const results = await Promise.allSettled(
      Array.from({ length: 6 }, (_, i) => profiles.set(ALICE, `a.f${i}`, 'x'.repeat(20_000))),
    );
    assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 3);
  });

  it('tell listeners of names and avatars, and of nothing else', async () => {
    const told: unknown[] = [];
    profiles.onChange(async (...change) => void told.push(change));
    await profiles.set(ALICE, 'displayname', 'Alice');
    await profiles.set(ALICE, 'displayname', 'Alice');
    await profiles.set(ALICE, 'm.tz', 'Europe/London');
    await profiles.set(ALICE, 'avatar_url', 'mxc://example.org/a');
    assert.deepEqual(told, [
      [ALICE, { displayname: 'Alice' }],
      [ALICE, { displayname: 'Alice', avatar_url: 'mxc://example.org/a' }],
    ]);
    assert.deepEqual(
      await profiles.visible(ALICE),
      told.length === 2 ? (told[1] as unknown[])[1] : undefined,
    );
  });

  it('of other servers are asked for, kept a while, and cleaned', async () => {
    remoteAnswer = { displayname: { not: 'text' }, avatar_url: 'mxc://elsewhere.example/a', 'org.x': 1 };
    const expected = { avatar_url: 'mxc://elsewhere.example/a', 'org.x': 1 };
    assert.deepEqual(await profiles.get(BOB), expected);
    assert.deepEqual(await profiles.get(BOB), expected);
    assert.deepEqual(asked, [[BOB, undefined]]);
    remoteAnswer = [];
    await assert.rejects(profiles.getField(BOB, 'displayname'), { errcode: 'M_NOT_FOUND' });
    assert.deepEqual(asked[1], [BOB, 'displayname']);
  });

  it('are not found for nobody, and asked for only by user ids', async () => {
    await assert.rejects(profiles.get('@nobody:example.org'), { errcode: 'M_NOT_FOUND' });
    await assert.rejects(profiles.get('nonsense'), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(profiles.get('@a\0:example.org'), { errcode: 'M_INVALID_PARAM' });
  });
});
