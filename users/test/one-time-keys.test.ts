import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { testDatabase } from '@trellis/storage/testing.ts';
import { countQueries, deviceKeysOf, e2eeFixture } from './e2ee-fixture.ts';

const ALGORITHM = 'signed_curve25519';

describe('keys of devices', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  let fixture: ReturnType<typeof e2eeFixture>;
  before(async () => {
    database = await testDatabase();
    fixture = e2eeFixture(database.db);
  });
  after(async () => {
    await fixture.devices.close();
    await database.close();
  });
  const keys = (...ids: string[]) =>
    Object.fromEntries(ids.map((id) => [`${ALGORITHM}:${id}`, { key: id, signatures: {} }]));
  const claim = async (userId: string, deviceId = 'A') =>
    (await fixture.deviceKeys.claim([{ userId, deviceId, algorithm: ALGORITHM }]))[0]?.keyId;

  it('are each given to one of many who claim at once, all of them', async () => {
    const alice = await fixture.user('alice', 'A');
    const ids = Array.from({ length: 40 }, (_, i) => `k${i}`);
    await fixture.deviceKeys.upload(alice, 'A', { oneTimeKeys: keys(...ids) });
    const given = await Promise.all(Array.from({ length: 50 }, () => claim(alice)));
    assert.deepEqual(given.filter((id) => id !== undefined).sort(), ids.toSorted());
    assert.equal((await fixture.deviceKeys.counts(alice, 'A')).oneTimeKeys[ALGORITHM], 0);
  });

  it('are given in the order of their uploads', async () => {
    const bob = await fixture.user('bob', 'A');
    for (const id of ['z', 'm', 'a']) await fixture.deviceKeys.upload(bob, 'A', { oneTimeKeys: keys(id) });
    assert.deepEqual([await claim(bob), await claim(bob), await claim(bob)], ['z', 'm', 'a']);
  });

  it('do not come back when an upload is sent again after a claim', async () => {
    const carol = await fixture.user('carol', 'A');
    await fixture.deviceKeys.upload(carol, 'A', { oneTimeKeys: keys('1', '2') });
    const first = await claim(carol);
    const { oneTimeKeys } = await fixture.deviceKeys.upload(carol, 'A', { oneTimeKeys: keys('1', '2') });
    assert.equal(oneTimeKeys[ALGORITHM], 1);
    assert.notEqual(await claim(carol), first);
    assert.equal(await claim(carol), undefined);
  });

  it('keep their names: another key under the name of an unclaimed one is refused with all of the upload', async () => {
    const dave = await fixture.user('dave', 'A');
    await fixture.deviceKeys.upload(dave, 'A', { oneTimeKeys: keys('1') });
    const other = { [`${ALGORITHM}:1`]: { key: 'other', signatures: {} } };
    await assert.rejects(
      fixture.deviceKeys.upload(dave, 'A', {
        oneTimeKeys: { ...keys('2'), ...other },
        deviceKeys: deviceKeysOf(dave, 'A'),
      }),
      { status: 400 },
    );
    assert.equal((await fixture.deviceKeys.counts(dave, 'A')).oneTimeKeys[ALGORITHM], 1);
    assert.equal(await claim(dave), '1');
    await fixture.deviceKeys.upload(dave, 'A', { oneTimeKeys: other });
    assert.equal(await claim(dave), '1');
  });

  it('to fall back on are unused until they are given, also when uploaded once more', async () => {
    const erin = await fixture.user('erin', 'A');
    const unused = async () => (await fixture.deviceKeys.counts(erin, 'A')).unusedFallbackTypes;
    await fixture.deviceKeys.upload(erin, 'A', { oneTimeKeys: keys('1'), fallbackKeys: keys('f') });
    assert.deepEqual([await claim(erin), await unused()], ['1', [ALGORITHM]]);
    assert.deepEqual([await claim(erin), await claim(erin), await unused()], ['f', 'f', []]);
    await fixture.deviceKeys.upload(erin, 'A', { fallbackKeys: keys('f') });
    assert.deepEqual(await unused(), []);
    await fixture.deviceKeys.upload(erin, 'A', { fallbackKeys: keys('g') });
    assert.deepEqual(await unused(), [ALGORITHM]);
  });

  it('are counted from memory while they do not change', async () => {
    const frank = await fixture.user('frank', 'A');
    await fixture.deviceKeys.upload(frank, 'A', { oneTimeKeys: keys('1', '2') });
    const queries = countQueries(database.db);
    for (let i = 0; i < 10; i++) await fixture.deviceKeys.counts(frank, 'A');
    assert.equal(queries(), 0);
    await claim(frank);
    assert.equal((await fixture.deviceKeys.counts(frank, 'A')).oneTimeKeys[ALGORITHM], 1);
  });

  it('go with their device, and the deletion is announced even after a stop', async () => {
    const grace = await fixture.user('grace', 'A', 'B');
    await fixture.deviceKeys.upload(grace, 'A', {
      deviceKeys: deviceKeysOf(grace, 'A'),
      oneTimeKeys: keys('1'),
    });
    // The process ends between the commit and the announcement.
    const { changed } = fixture.lists;
    fixture.lists.changed = async () => {};
    await fixture.devices.delete(grace, ['A']);
    fixture.lists.changed = changed;
    assert.equal(await claim(grace), undefined);
    fixture.listChanges.length = 0;
    await fixture.lists.resume();
    await fixture.lists.resume();
    assert.deepEqual(fixture.listChanges, [{ userId: grace, deviceId: 'A' }]);
  });

  it('are announced when they change, and only then', async () => {
    const heidi = await fixture.user('heidi', 'A');
    fixture.listChanges.length = 0;
    const deviceKeys = deviceKeysOf(heidi, 'A');
    await fixture.deviceKeys.upload(heidi, 'A', { deviceKeys });
    await fixture.deviceKeys.upload(heidi, 'A', { deviceKeys });
    await fixture.deviceKeys.upload(heidi, 'A', { oneTimeKeys: keys('1') });
    assert.equal(fixture.listChanges.length, 1);
    const { current } = fixture.stream;
    assert.deepEqual([...(await fixture.lists.usersChanged(current - 1, current, '@x:y'))], [heidi]);
    assert.deepEqual([...(await fixture.lists.usersChanged(current, current, '@x:y'))], []);
  });
});
