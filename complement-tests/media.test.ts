import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { deflateSync } from 'node:zlib';
import { Client, path, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { PASSWORD, startServer, type TestServer } from './harness/server.ts';

/** A PNG in one colour, by hand: the tests need no image library. */
function png(width: number, height: number): Buffer {
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(crc32(body), body.length + 4);
    return out;
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const rows = Buffer.alloc((width * 3 + 1) * height, 0x7f);
  for (let y = 0; y < height; y++) rows[y * (width * 3 + 1)] = 0;
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([
    signature,
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}

function crc32(bytes: Buffer): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}

const sizeOf = (image: Buffer) => [image.readUInt32BE(16), image.readUInt32BE(20)];

const SECRET = 'a secret for administrators';

/** By the endpoint that administrators have from Synapse. */
async function registerAdmin(server: TestServer): Promise<Client> {
  const target = '/_synapse/admin/v1/register';
  const { nonce } = (await request(server.url, 'GET', target)).body;
  const user = { username: 'root', password: PASSWORD, admin: true };
  const text = [nonce, user.username, user.password, 'admin'].join('\0');
  const mac = createHmac('sha1', SECRET).update(text).digest('hex');
  const answer = await request(server.url, 'POST', target, { body: { ...user, nonce, mac } });
  return new Client(server.url, answer.body);
}

describe('media', () => {
  let server: TestServer;
  let alice: Client;
  let admin: Client;
  before(async () => {
    server = await startServer({ name: 'media', config: { registration: { shared_secret: SECRET } } });
    alice = await server.register('alice');
    admin = await registerAdmin(server);
  });
  after(() => server.close());

  const upload = async (bytes: Buffer, type: string, filename?: string): Promise<string> => {
    const answer = await alice.request('POST', '/_matrix/media/v3/upload', {
      raw: bytes,
      headers: { 'content-type': type },
      query: { filename },
    });
    assert.equal(answer.status, 200, JSON.stringify(answer.body));
    return answer.body.content_uri;
  };
  const ask = (what: string, uri: string, rest = '', query: Json = {}, token?: string | null) => {
    const [, name, id] = /^mxc:\/\/([^/]+)\/(.+)$/.exec(uri)!;
    return alice.request('GET', `/_matrix/client/v1/media/${what}${path`/${name!}/${id!}`}${rest}`, {
      query,
      token,
    });
  };
  const bytesOf = async (answer: Awaited<ReturnType<typeof ask>>) =>
    Buffer.isBuffer(answer.body) ? answer.body : Buffer.from(JSON.stringify(answer.body));

  it('come back byte by byte, with their type and name', async () => {
    const bytes = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 256));
    const uri = await upload(bytes, 'application/x-odd', 'ünï code.bin');
    assert.match(uri, new RegExp(`^mxc://${server.serverName}/[A-Za-z0-9_-]+$`));
    const answer = await ask('download', uri);
    assert.equal(answer.status, 200);
    assert.ok((await bytesOf(answer)).equals(bytes));
    assert.equal(answer.headers.get('content-type'), 'application/x-odd');
    assert.match(
      answer.headers.get('content-disposition')!,
      /^attachment; filename\*=utf-8''%C3%BCn%C3%AF%20code\.bin$/i,
    );
    assert.match(answer.headers.get('content-security-policy')!, /sandbox/);
    const named = await ask('download', uri, '/other.bin');
    assert.match(named.headers.get('content-disposition')!, /other\.bin/);
  });

  it('are shown inline only when they are harmless', async () => {
    const image = await ask('download', await upload(png(2, 2), 'image/png', 'dot.png'));
    assert.match(image.headers.get('content-disposition')!, /^inline/);
    for (const type of [
      'text/html',
      'image/svg+xml',
      'application/javascript',
      'application/xhtml+xml',
      'text/plain; x, text/html',
    ]) {
      const answer = await ask('download', await upload(Buffer.from('<script>alert(1)</script>'), type));
      assert.match(answer.headers.get('content-disposition')!, /^attachment/, type);
    }
  });

  it('need a token', async () => {
    const uri = await upload(png(2, 2), 'image/png');
    assert.equal((await ask('download', uri, '', {}, null)).status, 401);
    const raw = await request(server.url, 'POST', '/_matrix/media/v3/upload', { raw: 'x' });
    assert.deepEqual([raw.status, raw.body.errcode], [401, 'M_MISSING_TOKEN']);
  });

  it('are not found when they are not there, whatever the path says', async () => {
    for (const id of ['nothing', '..', '../../etc/passwd', '%2e%2e', 'a'.repeat(500)]) {
      const answer = await ask('download', `mxc://${server.serverName}/${id}`);
      assert.ok([400, 404].includes(answer.status), `${id}: ${answer.status}`);
    }
  });

  it('have thumbnails, scaled or cropped', async () => {
    const uri = await upload(png(640, 480), 'image/png');
    const scaled = await ask('thumbnail', uri, '', { width: 320, height: 320, method: 'scale' });
    assert.equal(scaled.status, 200);
    assert.match(scaled.headers.get('content-type')!, /^image\/(png|jpeg|webp)$/);
    if (scaled.headers.get('content-type') === 'image/png') assert.deepEqual(sizeOf(scaled.body), [320, 240]);
    const cropped = await ask('thumbnail', uri, '', { width: 96, height: 96, method: 'crop' });
    if (cropped.headers.get('content-type') === 'image/png') assert.deepEqual(sizeOf(cropped.body), [96, 96]);
    assert.equal((await ask('thumbnail', uri, '', { width: -1, height: 'x' })).status, 400);
    const text = await ask('thumbnail', await upload(Buffer.from('no picture'), 'text/plain'), '', {
      width: 32,
      height: 32,
    });
    assert.ok(text.status >= 400 && text.status < 500, String(text.status));
  });

  it('can be announced before they are uploaded', async () => {
    const { content_uri, unused_expires_at } = (await alice.request('POST', '/_matrix/media/v1/create')).body;
    assert.ok(unused_expires_at > Date.now());
    const early = await ask('download', content_uri, '', { timeout_ms: 100 });
    assert.deepEqual([early.status, early.body.errcode], [504, 'M_NOT_YET_UPLOADED']);
    const id = content_uri.split('/').at(-1);
    const put = () =>
      alice.request('PUT', `/_matrix/media/v3/upload/${server.serverName}/${id}`, {
        raw: 'later',
        headers: { 'content-type': 'text/plain' },
      });
    const waiting = ask('download', content_uri, '', { timeout_ms: 10_000 });
    assert.equal((await put()).status, 200);
    assert.equal((await bytesOf(await waiting)).toString(), 'later');
    const again = await put();
    assert.deepEqual([again.status, again.body.errcode], [409, 'M_CANNOT_OVERWRITE_MEDIA']);
  });

  it('say how large they may be, and keep to it', async () => {
    const config = await alice.get('/v1/media/config');
    assert.ok(config['m.upload.size'] > 1_000_000);
    assert.deepEqual((await alice.request('GET', '/_matrix/media/v3/config')).body, config);
    const headers = { 'content-type': 'text/plain' };
    const raw = Buffer.alloc(config['m.upload.size'] + 1);
    const answer = await alice
      .request('POST', '/_matrix/media/v3/upload', { raw, headers })
      .catch(() => undefined);
    if (answer) assert.deepEqual([answer.status, answer.body.errcode], [413, 'M_TOO_LARGE']);
  });

  it('come in parts, to those who ask for parts', async () => {
    const uri = await upload(Buffer.from('0123456789'), 'text/plain');
    const [, name, id] = /^mxc:\/\/([^/]+)\/(.+)$/.exec(uri)!;
    const part = await alice.request('GET', `/_matrix/client/v1/media/download${path`/${name!}/${id!}`}`, {
      headers: { range: 'bytes=2-4' },
    });
    // A server may also send the whole.
    if (part.status === 206) assert.equal(part.body.toString(), '234');
    else assert.equal(part.status, 200);
  });

  it('are no longer given away without a token', async () => {
    const uri = await upload(png(2, 2), 'image/png');
    const target = uri.replace('mxc://', '/_matrix/media/v3/download/');
    const answer = await request(server.url, 'GET', target);
    assert.deepEqual([answer.status, answer.body.errcode], [404, 'M_NOT_FOUND']);
  });

  it('are given away without a token where the server is set to do so', async () => {
    const open = await startServer({
      name: 'media-open',
      config: { media: { freeze_unauthenticated: false } },
    });
    try {
      const bob = await open.register('bob');
      const image = png(64, 64);
      const { content_uri } = (
        await bob.request('POST', '/_matrix/media/v3/upload', {
          raw: image,
          headers: { 'content-type': 'image/png' },
        })
      ).body;
      const get = (what: string, rest = '') =>
        request(open.url, 'GET', content_uri.replace('mxc://', `/_matrix/media/v3/${what}/`) + rest);
      assert.ok((await get('download')).body.equals(image));
      const named = await get('download', '/dot.png');
      assert.match(named.headers.get('content-disposition')!, /dot\.png/);
      assert.equal((await get('thumbnail', '?width=32&height=32')).status, 200);
    } finally {
      await open.close();
    }
  });

  it('are taken out of sight by administrators, and by nobody else', async () => {
    const [uri, again] = [await upload(png(7, 7), 'image/png'), await upload(png(7, 7), 'image/png')];
    const { room_id: roomId } = await alice.post('/v3/createRoom');
    // What clients say of their pictures besides what the specification knows stays as it is.
    const content = {
      msgtype: 'm.image',
      body: 'dot.png',
      url: uri,
      info: { w: 7, h: 7, 'xyz.amorgan.blurhash': 'LEHV6nWB2yk8pyo0adR*.7kCMdnj' },
    };
    const send = path`/v3/rooms/${roomId}/send/m.room.message/1`;
    const { event_id: eventId } = await alice.put(send, content);
    const event = await alice.get(path`/v3/rooms/${roomId}/event/${eventId}`);
    assert.deepEqual(event.content, content);

    const base = '/_synapse/admin/v1';
    const list = path`/room/${roomId}/media`;
    assert.equal((await alice.request('GET', base + list)).status, 403);
    assert.deepEqual((await admin.request('GET', base + list)).body, { local: [uri], remote: [] });
    const quarantine = `${base}/media/quarantine/${uri.slice('mxc://'.length)}`;
    assert.equal((await alice.request('POST', quarantine, { body: {} })).status, 403);
    assert.equal((await ask('download', uri)).status, 200);
    assert.equal((await admin.request('POST', quarantine, { body: {} })).status, 200);
    for (const one of [uri, again, await upload(png(7, 7), 'image/png')]) {
      const refused = await ask('download', one);
      assert.deepEqual([refused.status, refused.body.errcode], [404, 'M_NOT_FOUND']);
      assert.equal((await ask('thumbnail', one, '', { width: 32, height: 32 })).status, 404);
    }
    const uploads = await admin.request('GET', base + path`/users/${alice.userId}/media`, {
      query: { limit: 2 },
    });
    assert.deepEqual(
      [uploads.body.media[0].quarantined_by, uploads.body.media.length, uploads.body.next_token],
      [admin.userId, 2, 2],
    );
    const target = quarantine.replace('quarantine', 'unquarantine');
    assert.equal((await admin.request('POST', target)).status, 200);
    assert.equal((await ask('download', again)).status, 200);
    const removal = `${base}/media/${uri.slice('mxc://'.length)}`;
    assert.equal((await admin.request('DELETE', removal)).body.total, 1);
    assert.equal((await ask('download', uri)).status, 404);
    assert.equal((await ask('download', again)).status, 200);
  });

  it('come from other servers, with their names and thumbnails', async () => {
    const image = png(640, 480);
    const uri = await upload(image, 'image/png', 'ünï.png');
    const other = await startServer({ name: 'media-other' });
    try {
      const bob = await other.register('bob');
      const target = (what: string, mxc: string) =>
        mxc.replace('mxc://', `/_matrix/client/v1/media/${what}/`);
      const answer = await bob.request('GET', target('download', uri));
      assert.equal(answer.status, 200, JSON.stringify(answer.body));
      assert.ok(answer.body.equals(image));
      assert.equal(answer.headers.get('content-type'), 'image/png');
      assert.match(answer.headers.get('content-disposition')!, /utf-8''%C3%BCn%C3%AF\.png/i);
      const query = { width: 32, height: 32, method: 'crop' };
      assert.equal((await bob.request('GET', target('thumbnail', uri), { query })).status, 200);
      const missing = await bob.request('GET', target('download', `${uri}x`));
      assert.deepEqual([missing.status, missing.body.errcode], [404, 'M_NOT_FOUND']);
      // What was fetched once is there when its server is not.
      await server.stop();
      assert.equal((await bob.request('GET', target('download', uri))).status, 200);
      assert.equal((await bob.request('GET', target('download', `${uri}y`))).status, 502);
    } finally {
      await other.close();
    }
  });
});

describe('URL previews', () => {
  let server: TestServer;
  let site: Server;
  let origin: string;
  const image = png(279, 129);
  before(async () => {
    server = await startServer({ name: 'previews' });
    site = createServer((request, response) => {
      if (request.url === '/test.png') response.setHeader('content-type', 'image/png').end(image);
      else
        response
          .setHeader('content-type', 'text/html')
          .end(
            '<title>No</title><meta property="og:title" content="The &amp;"><meta property="og:image" content="test.png">',
          );
    });
    await new Promise<void>((listening) => site.listen(0, '127.0.0.1', listening));
    origin = `http://127.0.0.1:${(site.address() as AddressInfo).port}`;
  });
  after(async () => {
    site.close();
    await server.close();
  });

  it('show what the page says, and its picture', async () => {
    const alice = await server.register('alice');
    const target = '/_matrix/client/v1/media/preview_url';
    const { status, body } = await alice.request('GET', target, { query: { url: `${origin}/page` } });
    assert.equal(status, 200, JSON.stringify(body));
    assert.equal(body['og:title'], 'The &');
    assert.deepEqual([body['og:image:width'], body['og:image:height']], [279, 129]);
    assert.equal(body['matrix:image:size'], image.length);
    const picture = body['og:image'].replace('mxc://', '/_matrix/client/v1/media/download/');
    assert.ok((await alice.request('GET', picture)).body.equals(image));
    const old = await alice.request('GET', '/_matrix/media/v3/preview_url', {
      query: { url: `${origin}/page` },
    });
    assert.equal(old.body['og:title'], 'The &');
    const anonymous = await request(server.url, 'GET', target, { query: { url: origin } });
    assert.equal(anonymous.status, 401);
  });

  it('do not look into the network of the server, unless it is allowed to', async () => {
    const strict = await startServer({
      name: 'guarded',
      config: { federation: { deny_addresses: ['127.0.0.0/8'] } },
    });
    try {
      const alice = await strict.register('alice');
      const url = `${origin}/page`;
      const answer = await alice.request('GET', '/_matrix/client/v1/media/preview_url', { query: { url } });
      assert.ok(answer.status >= 400, JSON.stringify(answer.body));
    } finally {
      await strict.close();
    }
  });
});
