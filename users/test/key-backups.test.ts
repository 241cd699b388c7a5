import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { testDatabase } from '@trellis/storage/testing.ts';
import { type BackedUpKey, KeyBackups, type KeyRange } from '../e2ee/key-backups.ts';

const ALICE = '@alice:here.example';

describe('key backups', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  let backups: KeyBackups;
  before(async () => {
    database = await testDatabase();
    backups = new KeyBackups(database.db);
  });
  after(() => database.close());

  const key = (sessionId: string, first: number, forwarded: number, is_verified: boolean): BackedUpKey => ({
    roomId: '!room:x',
    sessionId,
    first_message_index: first,
    forwarded_count: forwarded,
    is_verified,
    session_data: { of: `${first} ${forwarded} ${is_verified}` },
  });
  const create = () => backups.create(ALICE, 'm.megolm_backup.v1.curve25519-aes-sha2', {});
  const read = async (version: string, range: KeyRange = {}) => {
    const all: BackedUpKey[] = [];
    for await (const page of backups.keys(ALICE, version, range)) all.push(...page);
    return all;
  };

  it('keep the better of two keys, in whichever order they come', async () => {
    const version = await create();
    // From best to worst: verified, then from an early message, then seldom forwarded.
    const ranked = [true, false].flatMap((verified) =>
      [0, 5].flatMap((first) => [1, 3].map((forwarded) => key('', first, forwarded, verified))),
    );
    for (const [i, better] of ranked.entries())
      for (const [j, worse] of ranked.entries()) {
        const name = `${i} ${j}`;
        await backups.put(ALICE, version, [{ ...better, sessionId: name }]);
        await backups.put(ALICE, version, [{ ...worse, sessionId: name }]);
        const [kept] = await read(version, { roomId: '!room:x', sessionId: name });
        assert.deepEqual(kept!.session_data, ranked[Math.min(i, j)]!.session_data, name);
      }
  });

  it('count their keys, and have a new etag when any has changed', async () => {
    const version = await create();
    const first = await backups.put(ALICE, version, [key('a', 1, 0, false), key('b', 1, 0, false)]);
    assert.equal(first.count, 2);
    assert.deepEqual(await backups.put(ALICE, version, [key('a', 2, 0, false)]), first);
    const second = await backups.put(ALICE, version, [key('a', 0, 0, false), key('c', 0, 0, false)]);
    assert.equal(second.count, 3);
    assert.notEqual(second.etag, first.etag);
    const third = await backups.removeKeys(ALICE, version, { roomId: '!room:x', sessionId: 'b' });
    assert.equal(third.count, 2);
    assert.notEqual(third.etag, second.etag);
    const { count, etag } = await backups.info(ALICE);
    assert.deepEqual({ count, etag }, third);
  });

  it('count rightly when devices write at once', async () => {
    const version = await create();
    await Promise.all(
      Array.from({ length: 20 }, (_, i) =>
        backups.put(ALICE, version, [key(`s${i % 7}`, 20 - i, 0, false), key(`t${i}`, 0, 0, false)]),
      ),
    );
    assert.equal((await backups.info(ALICE)).count, 27);
    assert.equal((await read(version)).length, 27);
  });

  it('are written to the newest version only', async () => {
    const old = await create();
    const newest = await create();
    await assert.rejects(backups.put(ALICE, old, []), {
      errcode: 'M_WRONG_ROOM_KEYS_VERSION',
      extra: { current_version: newest },
    });
    await assert.rejects(backups.put(ALICE, '77777', []), { errcode: 'M_NOT_FOUND' });
    await assert.rejects(backups.put('@bob:here.example', newest, []), { errcode: 'M_NOT_FOUND' });
    await backups.remove(ALICE, newest);
    await backups.remove(ALICE, newest);
    await assert.rejects(backups.remove(ALICE, '88888'), { errcode: 'M_NOT_FOUND' });
    assert.equal((await backups.info(ALICE)).version, old);
    assert.ok(Number(await create()) > Number(newest), 'a version is not given out twice');
  });

  it('are read in pages, every key once', async () => {
    const version = await create();
    const keys = Array.from({ length: 2300 }, (_, i) => ({
      ...key(`s${i % 1150}`, 0, 0, false),
      roomId: `!${i % 2}:x`,
    }));
    const distinct = new Set(keys.map(({ roomId, sessionId }) => `${roomId} ${sessionId}`)).size;
    const unique = [...new Map(keys.map((k) => [`${k.roomId} ${k.sessionId}`, k])).values()];
    await backups.put(ALICE, version, unique);
    const all = await read(version);
    assert.equal(all.length, distinct);
    assert.equal(new Set(all.map(({ roomId, sessionId }) => `${roomId} ${sessionId}`)).size, distinct);
  });
});
