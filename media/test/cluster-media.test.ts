import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { LocalJobs } from '@trellis/cluster/jobs-local.ts';
import { testCluster } from '@trellis/cluster/testing.ts';
import sharp from 'sharp';
import { MediaModeration } from '../moderation.ts';
import type { MediaRepository, RemoteMedia } from '../repository.ts';
import { Thumbnails } from '../thumbnails.ts';
import { ADMIN, type Bench, openBench, repositoryOn, SERVER } from './harness.ts';

const ALICE = '@alice:here.example';
const LOCAL = { waitMs: 10_000, allowRemote: false };

describe('media of two processes', () => {
  let bench: Bench;
  let one: MediaRepository;
  let two: MediaRepository;
  let fetched = 0;
  before(async () => {
    bench = await openBench();
    const cluster = await testCluster(2);
    const remote: RemoteMedia = {
      get: async (_request, read) => {
        fetched++;
        await sleep(50);
        const body = [Buffer.from('far')];
        return read({ contentType: 'text/plain', contentDisposition: undefined, body });
      },
    };
    [one, two] = cluster.members.map((member) => repositoryOn(bench, { cluster: member, remote })) as [
      MediaRepository,
      MediaRepository,
    ];
  });
  after(() => bench.close());

  it('come to those who wait for them in another one at once', async () => {
    const { mediaId } = await one.reserve(ALICE);
    const waiting = one.find(SERVER, mediaId, LOCAL);
    await sleep(50);
    const began = performance.now();
    const upload = {
      userId: ALICE,
      body: [Buffer.from('x')],
      contentType: 'text/plain',
      filename: undefined,
    };
    await two.uploadTo(SERVER, mediaId, upload);
    assert.equal((await waiting).size, 1);
    assert.ok(performance.now() - began < 1_000);
  });

  it('may be fetched by both at the same time', async () => {
    const options = { waitMs: 0, allowRemote: true };
    const found = await Promise.all([one, two].map((media) => media.find('far.example', 'abc', options)));
    assert.equal(fetched, 2);
    assert.ok(found[0]!.sha256.equals(found[1]!.sha256));
    for (const media of [one, two]) {
      const chunks: Buffer[] = [];
      for await (const chunk of await media.open(found[0]!)) chunks.push(chunk as Buffer);
      assert.equal(Buffer.concat(chunks).toString(), 'far');
    }
  });

  it('are quarantined in both once that is answered', async () => {
    const options = { waitMs: 0, allowRemote: true };
    await new MediaModeration(bench.db, one).quarantine([{ origin: 'far.example', mediaId: 'abc' }], ADMIN);
    for (const media of [one, two])
      await assert.rejects(media.find('far.example', 'abc', options), { errcode: 'M_NOT_FOUND' });
  });

  it('have thumbnails that others make', async () => {
    const image = await sharp({ create: { width: 400, height: 400, channels: 3, background: 'red' } })
      .png()
      .toBuffer();
    const mediaId = await one.keepOwn([image], 'image/png', image.length);
    const info = await one.find(SERVER, mediaId, LOCAL);
    const jobs = new LocalJobs({ warn: () => {} });
    const thumbnails = new Thumbnails({ db: bench.db, media: one, jobs });
    const request = { width: 64, height: 64, method: 'crop', animated: false } as const;
    const made = await Promise.all([thumbnails.get(info, request), thumbnails.get(info, request)]);
    assert.ok(made[0].sha256.equals(made[1].sha256));
    assert.ok(await bench.store.has(made[0].sha256));
    const text = await one.keepOwn([Buffer.from('no image')], 'image/png', 100);
    const wrong = await one.find(SERVER, text, LOCAL);
    await assert.rejects(thumbnails.get(wrong, request), { errcode: 'M_UNKNOWN', status: 400 });
  });
});
