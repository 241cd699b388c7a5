import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import type { RemoteMedia } from '../repository.ts';
import { ADMIN, appOn, type Bench, openBench, SERVER } from './harness.ts';

const THERE = 'there.example';
const BASE = '/_synapse/admin/v1';
const BOB = `@bob:${SERVER}`;

describe('administrators and media', () => {
  let bench: Bench;
  let app: FastifyInstance;
  const remote: RemoteMedia = {
    get: ({ mediaId }, read) =>
      read({
        contentType: 'text/plain',
        contentDisposition: undefined,
        body: [Buffer.from(`remote ${mediaId}`)],
      }),
  };
  before(async () => {
    bench = await openBench();
    ({ app } = appOn(bench, { remote }));
  });
  after(() => bench.close());

  const put = async (content: string | Buffer, user = '@alice:here.example'): Promise<string> => {
    const url = '/_matrix/media/v3/upload';
    const answer = await app.inject({ method: 'POST', url, headers: { 'x-user': user }, payload: content });
    return answer.json().content_uri.split('/').at(-1);
  };
  const statusOf = async (id: string, origin = SERVER, what = 'download', query = '') =>
    (await app.inject({ url: `/_matrix/client/v1/media/${what}/${origin}/${id}${query}` })).statusCode;
  const as = (user: string) => async (method: 'GET' | 'POST' | 'DELETE', path: string) => {
    const { statusCode, body } = await app.inject({
      method,
      url: BASE + path,
      headers: { 'x-user': user },
    });
    return { status: statusCode, body: JSON.parse(body) };
  };
  const admin = as(ADMIN);
  const done = async (...call: Parameters<typeof admin>) => {
    const { status, body } = await admin(...call);
    assert.equal(status, 200, JSON.stringify(body));
    return body;
  };

  it('are the only ones who decide', async () => {
    const id = await put('mine');
    for (const [method, path] of [
      ['POST', `/media/quarantine/${SERVER}/${id}`],
      ['GET', `/media/${SERVER}/${id}`],
      ['DELETE', `/media/${SERVER}/${id}`],
      ['GET', `/users/${BOB}/media`],
      ['POST', '/media/delete'],
      ['POST', '/purge_media_cache'],
    ] as const) {
      const { status, body } = await as(BOB)(method, path);
      assert.deepEqual([status, body.errcode], [403, 'M_FORBIDDEN'], path);
    }
    assert.equal(await statusOf(id), 200);
  });

  it('quarantine content under all of its names, those to come too', async () => {
    const picture = await sharp({ create: { width: 90, height: 90, channels: 3, background: 'blue' } })
      .png()
      .toBuffer();
    const [one, two] = [await put(picture), await put(picture, BOB)];
    assert.equal(await statusOf(one, SERVER, 'thumbnail', '?width=32&height=32'), 200);
    await done('POST', `/media/quarantine/${SERVER}/${one}`);
    const three = await put(picture);
    for (const id of [one, two, three]) {
      assert.equal(await statusOf(id), 404);
      assert.equal(await statusOf(id, SERVER, 'thumbnail', '?width=32&height=32'), 404);
      const answer = await app.inject({ url: `/_matrix/federation/v1/media/download/${id}` });
      assert.equal(answer.statusCode, 404);
      assert.equal((await done('GET', `/media/${SERVER}/${id}`)).media_info.quarantined_by, ADMIN);
    }
    await done('POST', `/media/unquarantine/${SERVER}/${three}`);
    for (const id of [one, two, three, await put(picture)]) assert.equal(await statusOf(id), 200);
  });

  it('quarantine names before anything is behind them', async () => {
    await done('POST', `/media/quarantine/${THERE}/unseen`);
    assert.equal(await statusOf('unseen', THERE), 404);
    await done('POST', `/media/unquarantine/${THERE}/unseen`);
    assert.equal(await statusOf('unseen', THERE), 200);
    const create = await app.inject({ method: 'POST', url: '/_matrix/media/v1/create' });
    const id = create.json().content_uri.split('/').at(-1);
    await done('POST', `/media/quarantine/${SERVER}/${id}`);
    assert.equal(await statusOf(id, SERVER, 'download', '?timeout_ms=5000'), 404);
    const url = `/_matrix/media/v3/upload/${SERVER}/${id}`;
    assert.equal((await app.inject({ method: 'PUT', url, payload: 'late' })).statusCode, 200);
    assert.equal(await statusOf(id), 404);
  });

  it('keep quarantined media of other servers out of what the cache forgets', async () => {
    assert.equal(await statusOf('kept', THERE), 200);
    await done('POST', `/media/quarantine/${THERE}/kept`);
    assert.equal(await statusOf('other', THERE), 200);
    const { deleted } = await done('POST', `/purge_media_cache?before_ts=${Date.now() + 1000}`);
    assert.ok(deleted >= 1);
    assert.equal(await statusOf('kept', THERE), 404);
    assert.equal((await admin('GET', `/media/${THERE}/other`)).status, 404);
    assert.equal((await done('GET', `/media/${THERE}/kept`)).media_info.media_length, 11);
  });

  it('protect media from all of this', async () => {
    const sticker = await put('a sticker', BOB);
    await done('POST', `/media/protect/${sticker}`);
    await done('POST', `/media/quarantine/${SERVER}/${sticker}`);
    await done('POST', `/user/${BOB}/media/quarantine`);
    assert.equal(await statusOf(sticker), 200);
    await done('POST', `/media/unprotect/${sticker}`);
    assert.deepEqual(await done('POST', `/user/${BOB}/media/quarantine`), { num_quarantined: 1 });
    assert.equal(await statusOf(sticker), 404);
    assert.equal((await admin('POST', '/media/protect/nothing')).status, 404);
  });

  it('list and quarantine what a room shows', async () => {
    const [image, thumbnail, file] = [await put('image'), await put('small'), await put('file')];
    const contents = [
      {
        msgtype: 'm.image',
        url: `mxc://${SERVER}/${image}`,
        info: { thumbnail_url: `mxc://${SERVER}/${thumbnail}` },
      },
      { msgtype: 'm.image', url: `mxc://${SERVER}/${image}` },
      { msgtype: 'm.file', file: { url: `mxc://${SERVER}/${file}` }, info: null },
      { msgtype: 'm.image', url: `mxc://${THERE}/inroom` },
      { msgtype: 'm.text', body: `mxc://${SERVER}/mentioned only`, url: 7 },
      { url: `mxc://${SERVER}/../etc` },
    ];
    await bench.db.query("INSERT INTO rooms (nid, room_id, version) VALUES (1, '!media:here', '12')");
    for (const [i, content] of contents.entries())
      await bench.db.query(
        `INSERT INTO events (nid, event_id, room, pos, depth, origin_server_ts, sender, type, json)
         VALUES ($1, $2, 1, $1, 1, 1, '@a:b', 'm.room.message', $3)`,
        [i + 1, `$${i}`, JSON.stringify({ content })],
      );
    assert.deepEqual(await done('GET', `/room/${encodeURIComponent('!media:here')}/media`), {
      local: [image, thumbnail, file].map((id) => `mxc://${SERVER}/${id}`),
      remote: [`mxc://${THERE}/inroom`],
    });
    const quarantined = await done('POST', `/room/${encodeURIComponent('!media:here')}/media/quarantine`);
    assert.deepEqual(quarantined, { num_quarantined: 4 });
    for (const id of [image, thumbnail, file]) assert.equal(await statusOf(id), 404);
    assert.equal(await statusOf('inroom', THERE), 404);
  });

  it("list a user's uploads by pages, and delete them", async () => {
    const user = `@carol:${SERVER}`;
    const ids: string[] = [];
    for (const text of ['a', 'bbb', 'cc']) ids.push(await put(text, user));
    await bench.db.query(
      `UPDATE media SET created_ts = array_position($1::text[], media_id) WHERE media_id = ANY($1)`,
      [ids],
    );
    const idsOf = (body: { media: Array<{ media_id: string }> }) => body.media.map((one) => one.media_id);
    const newest = await done('GET', `/users/${user}/media?limit=2`);
    assert.deepEqual([idsOf(newest), newest.total, newest.next_token], [[ids[2], ids[1]], 3, 2]);
    const rest = await done('GET', `/users/${user}/media?limit=2&from=${newest.next_token}`);
    assert.deepEqual([idsOf(rest), rest.next_token], [[ids[0]], undefined]);
    const bySize = await done('GET', `/users/${user}/media?order_by=media_length`);
    assert.deepEqual(idsOf(bySize), [ids[0], ids[2], ids[1]]);
    assert.equal(bySize.media[0].media_length, 1);
    for (const query of ['order_by=password', 'dir=x', 'limit=-1'])
      assert.equal((await admin('GET', `/users/${user}/media?${query}`)).status, 400, query);
    assert.equal((await admin('GET', '/users/@x:elsewhere.example/media')).status, 400);
    assert.deepEqual(await done('DELETE', `/media/${SERVER}/${ids[0]}`), {
      deleted_media: [ids[0]],
      total: 1,
    });
    assert.equal(await statusOf(ids[0]!), 404);
    assert.equal((await admin('DELETE', `/media/${THERE}/kept`)).status, 400);
    assert.equal((await done('DELETE', `/users/${user}/media`)).total, 2);
    assert.equal((await done('GET', `/users/${user}/media`)).total, 0);
  });

  it('delete what is large and was not looked at, without avatars and what is protected', async () => {
    const [old, small, avatar, kept, fresh] = [
      await put('x'.repeat(5000)),
      await put('y'),
      await put('z'.repeat(5000)),
      await put('w'.repeat(5000)),
      await put('v'.repeat(5000)),
    ];
    const past = 1_500_000_000_000;
    await bench.db.query('UPDATE media SET last_access_ts = $1 WHERE media_id = ANY($2)', [
      past,
      [old, small, avatar, kept],
    ]);
    await bench.db.query("INSERT INTO profile_fields VALUES ('@a:here.example', 'avatar_url', $1)", [
      JSON.stringify(`mxc://${SERVER}/${avatar}`),
    ]);
    await done('POST', `/media/protect/${kept}`);
    const call = (query: string) => done('POST', `/media/delete?before_ts=${past + 1}${query}`);
    assert.deepEqual((await call('&size_gt=100')).deleted_media, [old]);
    assert.deepEqual((await call('')).deleted_media, [small]);
    assert.deepEqual((await call('&keep_profiles=false')).deleted_media, [avatar]);
    for (const id of [kept, fresh]) assert.equal(await statusOf(id), 200);
    assert.equal((await admin('POST', '/media/delete?before_ts=1500000000')).status, 400);
    assert.equal((await admin('POST', '/media/delete')).status, 400);
  });
});
