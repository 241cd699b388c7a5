import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { FastifyInstance } from 'fastify';
import { appOn, type Bench, openBench, SERVER, upload } from './harness.ts';

describe('the routes of the content repository', () => {
  let bench: Bench;
  let app: FastifyInstance;
  before(async () => {
    bench = await openBench();
    ({ app } = appOn(bench));
  });
  after(() => bench.close());

  const get = (id: string, headers = {}, rest = '') =>
    app.inject({ url: `/_matrix/client/v1/media/download/${SERVER}/${id}${rest}`, headers });

  it('give bytes back as they came, with what browsers need to be safe', async () => {
    const bytes = randomBytes(300_000);
    const id = await upload(app, bytes, 'text/html; charset=utf-8', 'a "page".html');
    const answer = await get(id);
    assert.equal(answer.statusCode, 200);
    assert.ok(answer.rawPayload.equals(bytes));
    assert.equal(answer.headers['content-type'], 'text/html; charset=utf-8');
    assert.equal(answer.headers['content-disposition'], 'attachment; filename="a \\"page\\".html"');
    assert.match(String(answer.headers['content-security-policy']), /^sandbox; default-src 'none'/);
    assert.equal(answer.headers['cross-origin-resource-policy'], 'cross-origin');
    assert.equal(answer.headers['x-content-type-options'], 'nosniff');
    assert.match(String(answer.headers['cache-control']), /^private/);
  });

  it('take what has no type, a broken one or JSON as it is', async () => {
    for (const [type, expected] of [
      [undefined, 'application/octet-stream'],
      ['nonsense', 'application/octet-stream'],
      ['application/json', 'application/json'],
      ['img/png', 'img/png'],
      ['text/plain; charset=utf-8', 'text/plain; charset=utf-8'],
      // Browsers would take the last of them.
      ['text/plain; x=y, text/html', 'application/octet-stream'],
      ['text/plain', 'text/plain'],
    ] as const) {
      const answer = await get(await upload(app, '{"not json', type));
      assert.equal(answer.body, '{"not json');
      assert.equal(answer.headers['content-type'], expected);
    }
  });

  it('take empty content', async () => {
    const answer = await app.inject({ method: 'POST', url: '/_matrix/media/v3/upload' });
    assert.equal(answer.statusCode, 200, answer.body);
    const id = (answer.json() as { content_uri: string }).content_uri.split('/').at(-1)!;
    const empty = await get(id, { range: 'bytes=0-' });
    assert.equal(empty.statusCode, 416);
    assert.equal((await get(id)).rawPayload.length, 0);
  });

  it('serve ranges and what the client has already', async () => {
    const id = await upload(app, '0123456789', 'text/plain');
    const cases: Array<[string, number, string, string | undefined]> = [
      ['bytes=2-4', 206, '234', 'bytes 2-4/10'],
      ['bytes=7-', 206, '789', 'bytes 7-9/10'],
      ['bytes=-2', 206, '89', 'bytes 8-9/10'],
      ['bytes=8-100', 206, '89', 'bytes 8-9/10'],
      ['bytes=4-2', 200, '0123456789', undefined],
      ['bytes=0-1,3-4', 200, '0123456789', undefined],
      ['lines=0-1', 200, '0123456789', undefined],
    ];
    for (const [range, status, body, contentRange] of cases) {
      const answer = await get(id, { range });
      assert.deepEqual(
        [answer.statusCode, answer.body, answer.headers['content-range']],
        [status, body, contentRange],
        range,
      );
      assert.equal(Number(answer.headers['content-length']), body.length);
    }
    const beyond = await get(id, { range: 'bytes=10-' });
    assert.deepEqual([beyond.statusCode, beyond.headers['content-range']], [416, 'bytes */10']);
    assert.match(String(beyond.headers['content-type']), /^application\/json/);
    const { etag } = (await get(id)).headers;
    const again = await get(id, { 'if-none-match': `"other", W/${etag}` });
    assert.deepEqual([again.statusCode, again.body], [304, '']);
    assert.equal((await get(id, { range: 'bytes=2-4', 'if-range': '"other"' })).statusCode, 200);
  });

  it('refuse what is too large, by its header and by its bytes, and keep none of it', async () => {
    const small = appOn(bench, { limits: { maxUploadBytes: 1000 } }).app;
    assert.deepEqual((await small.inject('/_matrix/client/v1/media/config')).json(), {
      'm.upload.size': 1000,
    });
    await small.listen({ port: 0, host: '127.0.0.1' });
    const { port } = small.server.address() as { port: number };
    const post = (body: Uint8Array | ReadableStream) =>
      fetch(`http://127.0.0.1:${port}/_matrix/media/v3/upload`, {
        method: 'POST',
        body,
        duplex: 'half',
      } as RequestInit);
    const unannounced = new ReadableStream({
      start(controller) {
        for (let i = 0; i < 50; i++) controller.enqueue(new Uint8Array(65_536));
        controller.close();
      },
    });
    for (const body of [new Uint8Array(1001), unannounced]) {
      const answer = await post(body);
      assert.equal(answer.status, 413);
      assert.equal(((await answer.json()) as { errcode: string }).errcode, 'M_TOO_LARGE');
    }
    assert.equal((await post(new Uint8Array(1000))).status, 200);
    // The refused upload is still under way: it would be waited for.
    small.server.closeAllConnections();
    await small.close();
    assert.deepEqual(await readdir(join(bench.folder, 'staging')), []);
  });

  it('fill reserved names once, by whom they belong to', async () => {
    const { app: other, media } = appOn(bench, { limits: { maxPendingUploads: 2 } });
    const create = () => other.inject({ method: 'POST', url: '/_matrix/media/v1/create' });
    const { content_uri, unused_expires_at } = (await create()).json();
    assert.ok(unused_expires_at > Date.now());
    const id = content_uri.split('/').at(-1);
    const early = await other.inject({
      url: `/_matrix/client/v1/media/download/${SERVER}/${id}?timeout_ms=20`,
    });
    assert.deepEqual([early.statusCode, early.json().errcode], [504, 'M_NOT_YET_UPLOADED']);
    await create();
    const third = await create();
    assert.deepEqual([third.statusCode, third.json().errcode], [429, 'M_LIMIT_EXCEEDED']);

    const put = (user: string, name = `${SERVER}/${id}`) =>
      other.inject({
        method: 'PUT',
        url: `/_matrix/media/v3/upload/${name}`,
        headers: { 'x-user': user, 'content-type': 'text/plain' },
        payload: 'late',
      });
    assert.equal((await put('@mallory:here')).statusCode, 403);
    assert.equal((await put('@alice:here', `${SERVER}/unknown`)).statusCode, 404);
    const waiting = media.find(SERVER, id, { waitMs: 10_000, allowRemote: false });
    const began = Date.now();
    assert.equal((await put('@alice:here')).statusCode, 200);
    assert.equal((await waiting).size, 4);
    assert.ok(Date.now() - began < 1500, 'the waiting download was woken');
    const again = await put('@alice:here');
    assert.deepEqual([again.statusCode, again.json().errcode], [409, 'M_CANNOT_OVERWRITE_MEDIA']);
    assert.equal((await create()).statusCode, 200);
  });

  it('freeze the endpoints without a token for what is new only', async () => {
    const old = await upload(app, 'before');
    const frozen = appOn(bench, { freezeUnauthenticated: true }).app;
    const fresh = await upload(frozen, 'after');
    const by = async (base: string, id: string) =>
      (await frozen.inject({ url: `${base}/download/${SERVER}/${id}` })).statusCode;
    assert.equal(await by('/_matrix/media/v3', old), 200);
    assert.equal(await by('/_matrix/media/v3', fresh), 404);
    assert.equal(await by('/_matrix/client/v1/media', fresh), 200);
  });

  it('give media to other servers in two parts', async () => {
    const id = await upload(app, 'federated', 'text/plain', 'ünï.txt');
    const answer = await app.inject({ url: `/_matrix/federation/v1/media/download/${id}` });
    const boundary = /^multipart\/mixed; boundary=(\w+)$/.exec(String(answer.headers['content-type']))![1];
    assert.equal(Number(answer.headers['content-length']), answer.rawPayload.length);
    assert.equal(
      answer.body,
      `--${boundary}\r\nContent-Type: application/json\r\n\r\n{}\r\n--${boundary}\r\n` +
        'Content-Type: text/plain\r\n' +
        "Content-Disposition: inline; filename*=utf-8''%C3%BCn%C3%AF.txt\r\n\r\n" +
        `federated\r\n--${boundary}--\r\n`,
    );
    const missing = await app.inject({ url: '/_matrix/federation/v1/media/download/missing' });
    assert.deepEqual([missing.statusCode, missing.json().errcode], [404, 'M_NOT_FOUND']);
  });

  it('say that something went wrong as errors, which nobody keeps', async () => {
    const { app: own, media } = appOn(bench);
    const id = await upload(own, 'lost by the store', 'text/plain');
    const { sha256 } = await media.find(SERVER, id, { waitMs: 0, allowRemote: false });
    await bench.store.delete(sha256);
    for (const url of [
      `/_matrix/client/v1/media/download/${SERVER}/${id}`,
      `/_matrix/client/v1/media/thumbnail/${SERVER}/${id}?width=32&height=32`,
      `/_matrix/federation/v1/media/download/${id}`,
    ]) {
      const answer = await own.inject({ url });
      assert.deepEqual([answer.statusCode, answer.json().errcode], [500, 'M_UNKNOWN'], url);
      for (const header of ['cache-control', 'etag', 'content-disposition'])
        assert.equal(answer.headers[header], undefined, header);
    }
  });

  it('answer HEAD by the headers alone', async () => {
    const id = await upload(app, '0123456789', 'text/plain');
    const url = `/_matrix/client/v1/media/download/${SERVER}/${id}`;
    const answer = await app.inject({ method: 'HEAD', url });
    assert.deepEqual(
      [answer.statusCode, answer.headers['content-length'], answer.headers['content-type'], answer.body],
      [200, '10', 'text/plain', ''],
    );
  });

  it('refuse names that are none and queries that make no sense', async () => {
    for (const name of [`${SERVER}/..%2f..%2fetc`, `${SERVER}/a.b`, '..%2f/abc', 'a%20b/abc'])
      assert.equal(
        (await app.inject({ url: `/_matrix/client/v1/media/download/${name}` })).statusCode,
        404,
        name,
      );
    const id = await upload(app, 'x');
    for (const query of [
      'width=0&height=1',
      'width=-1&height=1',
      'width=1.5&height=1',
      'width=1',
      'width=1&height=1&method=zoom',
    ])
      assert.equal(
        (await app.inject({ url: `/_matrix/client/v1/media/thumbnail/${SERVER}/${id}?${query}` })).statusCode,
        400,
        query,
      );
    assert.equal((await get(id, {}, '?timeout_ms=soon')).statusCode, 400);
  });
});
