import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { MediaRepository, RemoteMedia } from '../repository.ts';
import { type Bench, openBench, repositoryOn, SERVER } from './harness.ts';

const THERE = 'there.example';
const all = { waitMs: 0, allowRemote: true };

async function textOf(media: MediaRepository, info: { sha256: Buffer }): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of await media.open(info)) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

const upload = (media: MediaRepository, text: string, userId = '@alice:here.example') =>
  media.upload({ userId, body: [Buffer.from(text)], contentType: 'text/plain', filename: undefined });

describe('the media repository', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench();
  });
  after(() => bench.close());

  it('keeps content once under many names, until the last of them is gone', async () => {
    const media = repositoryOn(bench);
    const [one, two] = [await upload(media, 'the same'), await upload(media, 'the same')];
    assert.notEqual(one, two);
    const { sha256 } = await media.find(SERVER, one, all);
    await media.remove(SERVER, one);
    await assert.rejects(media.find(SERVER, one, all), { errcode: 'M_NOT_FOUND' });
    assert.equal(await textOf(media, await media.find(SERVER, two, all)), 'the same');
    await media.remove(SERVER, two);
    assert.equal(await bench.store.has(sha256), false);
    assert.equal(await media.remove(SERVER, two), false);
  });

  it('holds users to their quota', async () => {
    const media = repositoryOn(bench, { limits: { maxUserBytes: 10 } });
    await upload(media, 'ten bytes!', '@hoarder:here.example');
    await assert.rejects(upload(media, 'more', '@hoarder:here.example'), {
      status: 403,
      errcode: 'M_FORBIDDEN',
    });
    await upload(media, 'more', '@other:here.example');
  });

  it('fetches media of other servers once, however many ask', async () => {
    let asked = 0;
    const remote: RemoteMedia = {
      async get({ serverName, mediaId }, read) {
        asked++;
        assert.deepEqual([serverName, mediaId], [THERE, 'shared']);
        await new Promise((resolve) => setTimeout(resolve, 20));
        return read({
          contentType: 'text/plain',
          contentDisposition: 'inline; filename="remote.txt"',
          body: [Buffer.from('from '), Buffer.from('there')],
        });
      },
    };
    const media = repositoryOn(bench, { remote });
    await assert.rejects(media.find(THERE, 'shared', { waitMs: 0, allowRemote: false }), {
      errcode: 'M_NOT_FOUND',
    });
    const found = await Promise.all([1, 2, 3].map(() => media.find(THERE, 'shared', all)));
    assert.equal(asked, 1);
    assert.equal(await textOf(media, found[2]!), 'from there');
    assert.equal((await media.find(THERE, 'shared', all)).filename, 'remote.txt');
    assert.equal(asked, 1);
  });

  it('passes on what went wrong elsewhere, and asks again next time', async () => {
    const chunks = async function* () {
      yield Buffer.alloc(600);
      yield Buffer.alloc(600);
    };
    const remote: RemoteMedia = {
      async get({ mediaId }, read) {
        if (mediaId === 'gone') throw new MatrixError(502, 'M_UNKNOWN', 'unreachable');
        return read({ contentType: undefined, contentDisposition: undefined, body: chunks() });
      },
    };
    const media = repositoryOn(bench, { remote, limits: { maxRemoteBytes: 1000 } });
    await assert.rejects(media.find(THERE, 'large', all), { status: 502, errcode: 'M_TOO_LARGE' });
    await assert.rejects(media.find(THERE, 'gone', all), { status: 502, errcode: 'M_UNKNOWN' });
    const roomy = repositoryOn(bench, { remote });
    assert.equal((await roomy.find(THERE, 'large', all)).contentType, 'application/octet-stream');
  });

  it('brings nothing new in by the frozen endpoints', async () => {
    const remote: RemoteMedia = { get: () => assert.fail('asked') };
    const media = repositoryOn(bench, { remote, freezeUnauthenticated: true });
    await assert.rejects(media.find(THERE, 'new', { ...all, unauthenticated: true }), {
      errcode: 'M_NOT_FOUND',
    });
  });

  it('forgets reservations, previews and remote media that were not asked for', async () => {
    let now = 1_000_000_000_000;
    const remote: RemoteMedia = {
      get: (_request, read) =>
        read({
          contentType: undefined,
          contentDisposition: undefined,
          body: [Buffer.alloc(1000, now % 251)],
        }),
    };
    const media = repositoryOn(bench, {
      remote,
      clock: () => now,
      limits: { maxRemoteCacheBytes: 2500, pendingUploadLifetimeMs: 1000, previewImageLifetimeMs: 5000 },
    });
    const { mediaId } = await media.reserve('@alice:here.example');
    const image = await media.keepOwn([Buffer.from('image of a preview')], 'image/png', 1000);
    const kept = await upload(media, 'kept');
    await bench.db.query('DELETE FROM media WHERE origin = $1', [THERE]);
    for (const id of ['oldest', 'middle', 'newest']) {
      await media.find(THERE, id, all);
      now += 2000;
    }
    await media.maintain();
    const isThere = async (origin: string, id: string) =>
      (await bench.db.query('SELECT 1 FROM media WHERE origin = $1 AND media_id = $2', [origin, id])).length;
    assert.equal(await isThere(SERVER, mediaId), 0);
    assert.equal(await isThere(SERVER, image), 0);
    assert.equal(await isThere(SERVER, kept), 1);
    assert.deepEqual(
      await Promise.all(['oldest', 'middle', 'newest'].map((id) => isThere(THERE, id))),
      [0, 1, 1],
    );
  });

  it('keeps media for as long as someone looks at it', async () => {
    let now = 2_000_000_000_000;
    const DAY = 86_400_000;
    const remote: RemoteMedia = {
      get: ({ mediaId }, read) =>
        read({ contentType: undefined, contentDisposition: undefined, body: [Buffer.from(mediaId)] }),
    };
    const media = repositoryOn(bench, {
      remote,
      clock: () => now,
      limits: { localLifetimeMs: 10 * DAY, remoteLifetimeMs: 4 * DAY },
    });
    await bench.db.query('UPDATE media SET last_access_ts = $1', [now]);
    const [seen, unseen, avatar] = [
      await upload(media, 'seen'),
      await upload(media, 'unseen'),
      await upload(media, 'avatar'),
    ];
    await bench.db.query("INSERT INTO profile_fields VALUES ('@a:here.example', 'avatar_url', $1)", [
      JSON.stringify(`mxc://${SERVER}/${avatar}`),
    ]);
    await media.find(THERE, 'seen-there', all);
    await media.find(THERE, 'unseen-there', all);
    const left = async () => {
      const ids = ['seen-there', 'unseen-there', seen, unseen, avatar];
      const rows = await bench.db.query<{ media_id: string }>(
        'SELECT media_id FROM media WHERE media_id = ANY($1) ORDER BY array_position($1, media_id)',
        [ids],
      );
      return rows.map((row) => ids.indexOf(row.media_id));
    };
    now += 3 * DAY;
    await media.find(THERE, 'seen-there', all);
    await media.find(SERVER, seen, all);
    now += 2 * DAY;
    await media.maintain();
    assert.deepEqual(await left(), [0, 2, 3, 4]);
    now += 7 * DAY;
    await media.maintain();
    assert.deepEqual(await left(), [2, 4]);
    // What is gone from here is fetched again.
    assert.equal((await media.find(THERE, 'unseen-there', all)).size, 12);
  });
});
