import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { ContentTooLargeError } from '../media-store.ts';
import { S3Error } from '../s3-client.ts';
import { S3Store, type S3StoreOptions } from '../s3-store.ts';
import { appOn, type Bench, openBench, repositoryOn, SERVER, upload } from './harness.ts';
import { type Minio, minioProgram, startMinio } from './minio.ts';

const program = minioProgram();
const skip = program ? false : 'there is no MinIO: TRELLIS_MINIO names the program, or it is on the path';

async function bytesOf(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

describe('media in MinIO', { skip }, () => {
  let minio: Minio;
  let bench: Bench;
  let store: S3Store;
  let spoolFolder: string;
  const open = (more: Partial<S3StoreOptions> = {}) =>
    S3Store.open({ ...minio.options, prefix: 'some/where/', spoolFolder, ...more });
  before(async () => {
    minio = await startMinio(program!);
    bench = await openBench();
    spoolFolder = join(bench.folder, 'spool');
    store = await open();
    await store.check();
  });
  after(async () => {
    await store?.close();
    await bench?.close();
    await minio?.stop();
  });

  const keep = async (bytes: Buffer, maxBytes = bytes.length) => {
    const staged = await store.stage([bytes], maxBytes);
    await staged.commit();
    await staged.discard();
    return staged.sha256;
  };

  it('comes back as it went in, whole and in parts', async () => {
    const bytes = randomBytes(3_000_000);
    const chunks = async function* () {
      for (let at = 0; at < bytes.length; at += 70_000) yield bytes.subarray(at, at + 70_000);
    };
    const staged = await store.stage(chunks(), 10_000_000);
    await staged.commit();
    await staged.discard();
    assert.deepEqual(
      [staged.size, staged.sha256.toString('hex')],
      [bytes.length, createHash('sha256').update(bytes).digest('hex')],
    );
    assert.ok((await bytesOf(store.read(staged.sha256))).equals(bytes));
    const part = await bytesOf(store.read(staged.sha256, { start: 1_000_000, end: 1_000_999 }));
    assert.ok(part.equals(bytes.subarray(1_000_000, 1_001_000)));
    assert.deepEqual(await readdir(spoolFolder), []);
  });

  it('may be empty', async () => {
    const sha256 = await keep(Buffer.alloc(0));
    assert.equal(await store.has(sha256), true);
    assert.equal((await bytesOf(store.read(sha256))).length, 0);
  });

  it('is refused beyond a size, and nothing of it stays', async () => {
    await assert.rejects(store.stage([Buffer.alloc(600), Buffer.alloc(600)], 1000), ContentTooLargeError);
    assert.deepEqual(await readdir(spoolFolder), []);
  });

  it('is there until it is deleted, and no longer', async () => {
    const sha256 = await keep(Buffer.from('for a while'));
    await store.delete(sha256);
    assert.equal(await store.has(sha256), false);
    await store.delete(sha256);
    await assert.rejects(bytesOf(store.read(sha256)), (error: S3Error) => error.status === 404);
  });

  it('is there after its commit, even if it was deleted before', async () => {
    const staged = await store.stage([Buffer.from('contested')], 100);
    await store.delete(staged.sha256);
    await staged.commit();
    await staged.discard();
    assert.equal((await bytesOf(store.read(staged.sha256))).toString(), 'contested');
  });

  it('can be left off in the middle', async () => {
    const sha256 = await keep(randomBytes(2_000_000));
    for (let i = 0; i < 80; i++) {
      const stream = store.read(sha256);
      if (i % 2 === 0) await new Promise((resolve) => stream.once('readable', resolve));
      stream.on('error', () => {}).destroy();
    }
    assert.equal((await bytesOf(store.read(sha256))).length, 2_000_000);
  });

  it('is served like media on a disk, and goes with its last name', async () => {
    const { app, media } = appOn(bench, { store });
    const id = await upload(app, 'in a bucket', 'text/plain');
    const other = await upload(app, 'in a bucket', 'text/plain');
    const url = `/_matrix/client/v1/media/download/${SERVER}/${id}`;
    assert.equal((await app.inject({ url })).body, 'in a bucket');
    const part = await app.inject({ url, headers: { range: 'bytes=-6' } });
    assert.deepEqual([part.statusCode, part.body], [206, 'bucket']);
    const { sha256 } = await media.find(SERVER, id, { waitMs: 0, allowRemote: false });
    await media.remove(SERVER, id);
    assert.equal(await store.has(sha256), true);
    await media.remove(SERVER, other);
    assert.equal(await store.has(sha256), false);
  });

  it('does not stay when it gets no name', async () => {
    const { mediaId } = await repositoryOn(bench, { store }).reserve('@alice:here');
    const put = (text: string) =>
      repositoryOn(bench, { store }).uploadTo(SERVER, mediaId, {
        userId: '@alice:here',
        contentType: undefined,
        filename: undefined,
        body: [Buffer.from(text)],
      });
    const results = await Promise.allSettled([put('first or'), put('second')]);
    assert.deepEqual(results.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
    const found = await Promise.all(
      ['first or', 'second'].map((text) => store.has(createHash('sha256').update(text).digest())),
    );
    assert.deepEqual(found.sort(), [false, true]);
  });

  it('is out of reach with wrong credentials or without a bucket, which is said without secrets', async () => {
    for (const [wrong, code] of [
      [{ secretKey: 'not the secret' }, 'SignatureDoesNotMatch'],
      [{ accessKey: 'nobody' }, 'InvalidAccessKeyId'],
      [{ bucket: 'missing' }, 'NoSuchBucket'],
    ] as const) {
      const closed = await open(wrong);
      await assert.rejects(closed.check(), (error: S3Error) => {
        assert.equal(error.code, code);
        assert.doesNotMatch(`${error.stack}`, /secret|nobody|trellis-test/);
        return true;
      });
      await closed.close();
    }
  });
});

describe('an S3 store', () => {
  let server: Server;
  let folder: string;
  let answers: number[] = [];
  let asked: Array<{ method?: string; url?: string; host?: string }> = [];
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'trellis-s3-'));
    server = createServer((request, response) => {
      const { method, url, headers } = request;
      asked.push({ method, url, host: headers.host });
      request.resume().once('end', () => {
        response.statusCode = answers.shift() ?? 200;
        response.end(response.statusCode === 200 ? '' : '<Error><Code>SlowDown</Code></Error>');
      });
    });
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  });
  after(async () => {
    server.closeAllConnections();
    server.close();
    await rm(folder, { recursive: true });
  });

  const open = (more: Partial<S3StoreOptions> = {}) => {
    const { port } = server.address() as AddressInfo;
    return S3Store.open({
      endpoint: `http://localhost:${port}/base/`,
      region: 'eu-central-1',
      bucket: 'bucket',
      accessKey: 'id',
      secretKey: 'key',
      prefix: 'p/',
      pathStyle: true,
      spoolFolder: folder,
      ...more,
    });
  };

  it('that is busy is asked again, and not for ever', async () => {
    const store = await open();
    [asked, answers] = [[], [503, 500, 200]];
    assert.equal(await store.has(Buffer.alloc(32)), true);
    assert.deepEqual([...new Set(asked.map(({ url }) => url))], [`/base/bucket/p/00/00/${'0'.repeat(60)}`]);
    assert.equal(asked.length, 3);
    [asked, answers] = [[], [404, 503, 503, 503, 503, 503]];
    await assert.rejects(store.stage([Buffer.from('x')], 10), (error) => {
      return error instanceof S3Error && error.status === 503 && error.code === 'SlowDown';
    });
    assert.equal(asked.length, 5);
    assert.deepEqual(await readdir(folder), []);
    await store.close();
  });

  it('that says no is not asked again', async () => {
    const store = await open();
    [asked, answers] = [[], [403]];
    await assert.rejects(store.delete(Buffer.alloc(32)), { name: 'S3Error', status: 403 });
    assert.equal(asked.length, 1);
    await store.close();
  });

  it('that ignores a range is not believed', async () => {
    const store = await open();
    answers = [200];
    await assert.rejects(bytesOf(store.read(Buffer.alloc(32), { start: 0, end: 1 })), { name: 'S3Error' });
    await store.close();
  });

  it('is asked under the name of its bucket, where that is its way', async () => {
    // Names below localhost lead to this machine, by what answers names or by nothing at all.
    const store = await open({ pathStyle: false });
    [asked, answers] = [[], []];
    const reached = await store.has(Buffer.alloc(32)).catch((error: Error) => error.cause);
    if (reached === true) {
      assert.match(asked[0]!.host!, /^bucket\.localhost:\d+$/);
      assert.equal(asked[0]!.url, `/base/p/00/00/${'0'.repeat(60)}`);
    } else {
      assert.equal((reached as { hostname?: string }).hostname, 'bucket.localhost');
    }
    await store.close();
  });
});
