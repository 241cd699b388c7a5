import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type PusherRequest, Pushers } from '../pushers.ts';
import { databaseForFile, devicesOn } from './fixture.ts';

const ALICE = '@alice:example.org';
const BOB = '@bob:example.org';
const db = await databaseForFile();
const { devices } = devicesOn(db);
const pushers = new Pushers({ db, devices, eventPosition: () => 42 });

const request = (more: Partial<PusherRequest> = {}): PusherRequest => ({
  pushkey: 'key',
  kind: 'http',
  app_id: 'org.example.app',
  app_display_name: 'App',
  device_display_name: 'Phone',
  profile_tag: 'tag',
  lang: 'en',
  data: { url: 'https://push.example.org/_matrix/push/v1/notify', custom: [1] },
  ...more,
});
const keys = async (userId: string) => (await pushers.of(userId)).map(({ pushkey }) => pushkey);

describe('pushers', () => {
  it('are made, changed and taken away by app and key', async () => {
    await pushers.set(ALICE, 'A', request());
    const [made] = await pushers.of(ALICE);
    const { append: _, ...expected } = request();
    assert.deepEqual(made, { ...expected, enabled: true, userId: ALICE, deviceId: 'A', pos: 42 });
    await pushers.set(ALICE, 'A', request({ lang: 'de' }));
    await pushers.set(ALICE, 'A', request({ pushkey: 'other' }));
    assert.deepEqual(
      (await pushers.of(ALICE)).map(({ pushkey, lang }) => [pushkey, lang]),
      [
        ['key', 'de'],
        ['other', 'en'],
      ],
    );
    await pushers.set(ALICE, 'A', { kind: null, app_id: 'org.example.app', pushkey: 'key' });
    assert.deepEqual(await keys(ALICE), ['other']);
    await pushers.erase(ALICE);
  });

  it('of one key are of one user, unless appended', async () => {
    await pushers.set(ALICE, 'A', request());
    await pushers.set(BOB, 'B', request({ append: true }));
    assert.deepEqual([await keys(ALICE), await keys(BOB)], [['key'], ['key']]);
    await pushers.set(BOB, 'B', request({ append: false }));
    assert.deepEqual([await keys(ALICE), await keys(BOB)], [[], ['key']]);
    await pushers.erase(BOB);
  });

  it('go with the device that set them', async () => {
    const told: string[] = [];
    pushers.onChange((userId) => told.push(userId));
    await devices.create(ALICE, 'GONE', undefined);
    await pushers.set(ALICE, 'GONE', request());
    await pushers.set(ALICE, 'STAYS', request({ pushkey: 'stays' }));
    await devices.delete(ALICE, ['GONE']);
    assert.deepEqual(await keys(ALICE), ['stays']);
    assert.deepEqual(told, [ALICE, ALICE, ALICE]);
  });

  it('are refused when something is wrong', async () => {
    const url = (value: unknown) => request({ data: { url: value as string } });
    const cases: Array<[PusherRequest, string]> = [
      [request({ lang: undefined, data: undefined }), 'M_MISSING_PARAM'],
      [request({ data: {} }), 'M_MISSING_PARAM'],
      [url('http://push.example.org/_matrix/push/v1/notify'), 'M_INVALID_PARAM'],
      [url('https://push.example.org/elsewhere'), 'M_INVALID_PARAM'],
      [url('nonsense'), 'M_INVALID_PARAM'],
      [url(7), 'M_INVALID_PARAM'],
      [request({ kind: 'pigeon' }), 'M_INVALID_PARAM'],
      [request({ kind: 'email', app_id: 'm.email', pushkey: 'a@example.org' }), 'M_INVALID_PARAM'],
      [request({ app_id: 'x'.repeat(65) }), 'M_INVALID_PARAM'],
      [request({ pushkey: 'é'.repeat(257) }), 'M_INVALID_PARAM'],
      [request({ data: { url: '', x: 'x'.repeat(20_000) } }), 'M_TOO_LARGE'],
    ];
    for (const [wrong, errcode] of cases) await assert.rejects(pushers.set(BOB, 'B', wrong), { errcode });
    assert.deepEqual(await keys(BOB), []);
    const insecure = new Pushers({ db, devices, eventPosition: () => 0, allowInsecure: true });
    await insecure.set(BOB, 'B', url('http://push.example.org/_matrix/push/v1/notify'));
  });
});
