import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { putRule } from '@trellis/protocol/push-rules/index.ts';
import { type AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { AccountData } from '../account-data.ts';
import { Filters } from '../filters.ts';
import { PushRules } from '../push-rules.ts';
import { RoomTags } from '../tags.ts';
import { databaseForFile } from './fixture.ts';

const ROOM = '!room:example.org';
const db = await databaseForFile();
let users = 0;

describe('account data', () => {
  let stream: Stream<AccountDataChange>;
  let data: AccountData;
  let pushRules: PushRules;
  let user: string;
  before(() => {
    stream = new Stream('accountData', 0);
    ({ data, pushRules } = newServices());
  });

  /** As after a restart: nothing is in memory. */
  function newServices() {
    const pushRules = new PushRules({ db, stream });
    return { pushRules, data: new AccountData({ db, stream, pushRules }) };
  }
  const newUser = () => {
    users += 1;
    user = `@user${users}:example.org`;
    return user;
  };
  const changes = async (from: number | undefined, of = data) =>
    (await of.changes(user, from, stream.current)).map(({ roomId, type, content }) => [
      roomId,
      type,
      content,
    ]);

  it('is kept globally and by room, and read back after a restart', async () => {
    newUser();
    await data.set(user, null, 'a', { x: '\u0000' });
    await data.set(user, ROOM, 'a', { y: 1 });
    for (const each of [data, newServices().data]) {
      assert.deepEqual(await each.get(user, null, 'a'), { x: '\u0000' });
      assert.deepEqual(await each.get(user, ROOM, 'a'), { y: 1 });
      assert.equal(await each.get(user, ROOM, 'b'), undefined);
      assert.equal(await each.get('@other:example.org', null, 'a'), undefined);
    }
  });

  it('tells what changed since a position, and everything at first', async () => {
    newUser();
    await data.set(user, null, 'a', { v: 1 });
    const from = stream.current;
    await data.set(user, null, 'a', { v: 2 });
    await data.set(user, ROOM, 'b', { v: 3 });
    const news = [
      [null, 'a', { v: 2 }],
      [ROOM, 'b', { v: 3 }],
    ];
    assert.deepEqual(await changes(from), news);
    assert.deepEqual(await changes(from, newServices().data), news);
    assert.deepEqual(await changes(stream.current), []);
    const all = await changes(undefined);
    assert.deepEqual(all.slice(0, 2), news);
    assert.equal(all[2]![1], 'm.push_rules');
  });

  it('that is deleted is told of once and then is gone (MSC3391)', async () => {
    newUser();
    await data.set(user, null, 'a', { v: 1 });
    await data.set(user, null, 'b', { v: 1 });
    const from = stream.current;
    await data.delete(user, null, 'a');
    await data.set(user, null, 'b', {});
    await data.delete(user, null, 'never there');
    assert.deepEqual(await changes(from), [
      [null, 'a', {}],
      [null, 'b', {}],
    ]);
    assert.equal(await data.get(user, null, 'a'), undefined);
    assert.deepEqual(
      (await changes(undefined)).map(([, type]) => type),
      ['m.push_rules'],
    );
  });

  it('of the server is not to be set, and what is too large is refused', async () => {
    newUser();
    for (const type of ['m.fully_read', 'm.push_rules'])
      for (const room of [null, ROOM]) {
        const refused = { status: 405, errcode: 'M_BAD_JSON' };
        await assert.rejects(data.set(user, room, type, {}), refused);
        await assert.rejects(data.delete(user, room, type), refused);
      }
    await assert.rejects(data.set(user, null, 'x'.repeat(256), {}), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(data.set(user, null, 'nul\0', {}), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(data.set(user, null, 'a', { x: 'x'.repeat(2 ** 20) }), { errcode: 'M_TOO_LARGE' });
  });

  it('knows who is ignored, as of the last change', async () => {
    newUser();
    assert.equal((await data.ignoredUsers(user)).size, 0);
    await data.set(user, null, 'm.ignored_user_list', { ignored_users: { '@x:example.org': {} } });
    assert.deepEqual([...(await data.ignoredUsers(user))], ['@x:example.org']);
    await data.set(user, null, 'm.ignored_user_list', { ignored_users: 'nonsense' });
    assert.equal((await data.ignoredUsers(user)).size, 0);
  });

  it('has push rules in it, which have changes of their own', async () => {
    newUser();
    const from = stream.current;
    await pushRules.change(user, (rules) => putRule(rules, 'room', ROOM, { actions: [] }));
    const rules = (await data.get(user, null, 'm.push_rules')) as { global: { room: object[] } };
    assert.equal(rules.global.room.length, 1);
    assert.deepEqual(await changes(from), [[null, 'm.push_rules', rules]]);
    assert.deepEqual(await newServices().data.get(user, null, 'm.push_rules'), rules);
    await pushRules.copyRoomRules(user, ROOM, '!new:example.org');
    assert.equal((await pushRules.ruleset(user)).room.length, 2);
    const now = stream.current;
    await pushRules.copyRoomRules(user, '!unknown:example.org', '!new:example.org');
    assert.equal(stream.current, now, 'nothing changed, so nothing is told');
  });

  it('holds tags, of which none is lost when several are set at once', async () => {
    newUser();
    const tags = new RoomTags(data);
    await Promise.all(['a', 'b', 'c'].map((tag) => tags.set(user, ROOM, tag, { order: 0.5 })));
    await tags.delete(user, ROOM, 'b');
    await tags.delete(user, ROOM, 'never there');
    assert.deepEqual(await tags.get(user, ROOM), { a: { order: 0.5 }, c: { order: 0.5 } });
    assert.deepEqual(await data.get(user, ROOM, 'm.tag'), { tags: await tags.get(user, ROOM) });
    for (const order of [-0.1, 1.1, '0.5'])
      await assert.rejects(tags.set(user, ROOM, 'd', { order }), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(tags.set(user, ROOM, 'é'.repeat(128), {}), { errcode: 'M_INVALID_PARAM' });
  });
});

describe('filters', () => {
  const filters = new Filters(db);
  const user = '@alice:example.org';

  it('are kept as they came, the same one once', async () => {
    const json = { room: { timeline: { limit: 3 } }, unknown: 1 };
    const id = await filters.store(user, json);
    assert.equal(await filters.store(user, json), id);
    assert.ok(!id.startsWith('{'));
    assert.deepEqual(await filters.get(user, id), json);
    assert.equal((await filters.resolve(user, id)).room?.timeline?.limit, 3);
    await assert.rejects(filters.get('@bob:example.org', id), { errcode: 'M_NOT_FOUND' });
    await assert.rejects(filters.get(user, 'x'), { errcode: 'M_NOT_FOUND' });
    await assert.rejects(filters.resolve(user, 'x'), { errcode: 'M_INVALID_PARAM' });
  });

  it('are refused when they are none', async () => {
    await assert.rejects(filters.store(user, { room: [] }), { errcode: 'M_BAD_JSON' });
    await assert.rejects(filters.store(user, { event_fields: ['x'.repeat(70_000)] }), {
      errcode: 'M_TOO_LARGE',
    });
    await assert.rejects(filters.resolve(user, '{'), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(filters.resolve(user, '{"room":1}'), { errcode: 'M_BAD_JSON' });
    assert.deepEqual(await filters.resolve(user, undefined), {});
    assert.equal((await filters.resolve(user, '{"room":{"include_leave":true}}')).room?.include_leave, true);
  });
});
