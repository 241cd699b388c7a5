import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import { decodeHtml } from '../html-charset.ts';
import { readPage } from '../html-preview.ts';
import type { PreviewFetch } from '../preview-fetch.ts';
import { UrlPreviews } from '../url-previews.ts';
import { appOn, type Bench, openBench, SERVER } from './harness.ts';

describe('what a page says about itself', () => {
  it('is its og: properties, the first of each', () => {
    const page = readPage(`<html prefix="og: http://ogp.me/ns#"><head><title>The Rock (1996)</title>
      <meta property="og:title" content="The  Rock &amp; more" /><META NAME='og:title' CONTENT='second'>
      <meta property="og:type" content="video.movie"><meta property="og:url" content="http://x.example/">
      <meta property="og:image" content=" test.png "><meta property="og:image:width" content="7">
      <meta property="og:video" content="http://tracker.example/v"></head><body><p>Text</p></body></html>`);
    assert.deepEqual(page, {
      properties: {
        'og:title': 'The Rock & more',
        'og:type': 'video.movie',
        'og:url': 'http://x.example/',
        'og:description': 'Text',
      },
      image: 'test.png',
    });
  });

  it('is read from elsewhere when they are missing', () => {
    const page = readPage(`<title>\n A title </title><meta name="Description" content="About it">
      <meta name="twitter:image" content="/card.png"><h1>Heading</h1>`);
    assert.deepEqual(page, {
      properties: { 'og:title': 'A title', 'og:description': 'About it' },
      image: '/card.png',
    });
    const bare = readPage(`<svg><title>Icon</title></svg><h1>A <b>heading</b></h1><nav><p>Menu</p></nav>
      <script>document.write("<p>no</p>")</script><p>First ${'word '.repeat(300)}</p>`);
    assert.equal(bare.properties['og:title'], 'A heading');
    assert.match(bare.properties['og:description']!, /^First word .{400,495}word…$/);
    assert.deepEqual(readPage(''), { properties: {}, image: undefined });
  });

  it('is bounded, whatever the page does', () => {
    const many = Array.from(
      { length: 500 },
      (_, i) => `<meta property="og:x${i}" content="${'y'.repeat(5000)}">`,
    );
    const { properties } = readPage(many.join(''));
    assert.equal(Object.keys(properties).length, 40);
    assert.equal(properties['og:x0']!.length, 1000);
    const began = process.cpuUsage();
    readPage(`${'<p><div a="'.repeat(50_000)}${'<title>'.repeat(50_000)}`);
    assert.ok(process.cpuUsage(began).user < 2_000_000);
  });

  it('is in the charset that mark, header or page name', () => {
    const cyrillic = Buffer.from([0xcf, 0xf0, 0xe8, 0xe2, 0xe5, 0xf2]);
    const meta = Buffer.concat([Buffer.from('<meta charset="windows-1251">'), cyrillic]);
    assert.equal(decodeHtml(cyrillic, 'text/html; charset="windows-1251"'), 'Привет');
    assert.match(decodeHtml(meta, 'text/html'), /Привет$/);
    assert.equal(decodeHtml(Buffer.from('\ufeffПривет', 'utf16le'), 'text/html; charset=utf-8'), 'Привет');
    assert.equal(decodeHtml(Buffer.from('Привет'), 'text/html'), 'Привет');
    assert.equal(decodeHtml(Buffer.from('caf\xe9', 'latin1'), 'text/html; charset=no-such'), 'café');
    assert.equal(decodeHtml(Buffer.from('Привет').subarray(0, -1), 'text/html'), 'Приве');
  });
});

describe('URL previews', () => {
  let bench: Bench;
  let png: Buffer;
  let asked: string[] = [];
  let now = Date.now();
  const pages = new Map<string, { status?: number; headers: Record<string, string>; body?: Buffer }>();
  let app: FastifyInstance;

  const fetch: PreviewFetch = async (url) => {
    asked.push(url);
    const page = pages.get(url);
    if (!page) throw new Error(`connect ECONNREFUSED 10.0.0.1 for ${url}`);
    return { status: 200, ...page, body: [page.body ?? Buffer.alloc(0)] as never, discard() {} };
  };
  const html = (body: string) => ({ headers: { 'content-type': 'text/html' }, body: Buffer.from(body) });
  const ask = (url: string) => app.inject({ url: '/_matrix/client/v1/media/preview_url', query: { url } });

  before(async () => {
    bench = await openBench();
    png = await sharp({ create: { width: 7, height: 5, channels: 3, background: 'red' } })
      .png()
      .toBuffer();
    ({ app } = appOn(bench, {
      previews: (media) =>
        new UrlPreviews({ db: bench.db, media, fetch, clock: () => now, denyHosts: ['*.denied.example'] }),
    }));
    pages.set(
      'https://x.example/a/page',
      html('<title>T</title><meta property="og:image" content="../i.png">'),
    );
    pages.set('https://x.example/i.png', { headers: { 'content-type': 'image/png' }, body: png });
  });
  after(() => bench.close());

  it('have the picture as media of this server, and are kept for a while', async () => {
    const answer = await ask('https://x.example/a/page#part');
    assert.equal(answer.statusCode, 200, answer.body);
    const preview = answer.json();
    const { 'og:image': image, ...rest } = preview;
    assert.deepEqual(rest, {
      'og:title': 'T',
      'og:image:type': 'image/png',
      'og:image:width': 7,
      'og:image:height': 5,
      'matrix:image:size': png.length,
    });
    const id = image.slice(`mxc://${SERVER}/`.length);
    const download = await app.inject({ url: `/_matrix/client/v1/media/download/${SERVER}/${id}` });
    assert.ok(download.rawPayload.equals(png));

    asked = [];
    assert.deepEqual((await ask('https://x.example/a/page')).json(), preview);
    assert.deepEqual(asked, []);
    now += 2 * 3_600_000;
    assert.equal((await ask('https://x.example/a/page')).statusCode, 200);
    assert.equal(asked.length, 2);
  });

  it('are of pictures too, and of nothing else', async () => {
    assert.equal((await ask('https://x.example/i.png')).json()['og:image:width'], 7);
    pages.set('https://x.example/movie', {
      headers: { 'content-type': 'video/mp4' },
      body: Buffer.alloc(99),
    });
    assert.deepEqual((await ask('https://x.example/movie')).json(), {});
    pages.set('https://x.example/fake', {
      headers: { 'content-type': 'image/png' },
      body: Buffer.from('<svg/>'),
    });
    assert.deepEqual((await ask('https://x.example/fake')).json(), {});
    pages.set(
      'https://x.example/poor',
      html('<title>Poor</title><meta property="og:image" content="/404.png">'),
    );
    assert.deepEqual((await ask('https://x.example/poor')).json(), { 'og:title': 'Poor' });
  });

  it('do not go where they must not, at once or by a redirect', async () => {
    for (const url of [
      'ftp://x.example/',
      'file:///etc/passwd',
      'https://user:secret@x.example/',
      'https://a.denied.example/',
      'https://A.DENIED.example./',
    ]) {
      const answer = await ask(url);
      assert.deepEqual([answer.statusCode, answer.json().errcode], [403, 'M_FORBIDDEN'], url);
    }
    assert.equal((await ask('no url')).statusCode, 400);
    assert.equal(
      (await app.inject('/_matrix/client/v1/media/preview_url')).json().errcode,
      'M_MISSING_PARAM',
    );
    pages.set('https://x.example/away', { status: 302, headers: { location: 'https://b.denied.example/' } });
    assert.equal((await ask('https://x.example/away')).statusCode, 403);
    pages.set('https://x.example/on', { status: 301, headers: { location: '/a/page' } });
    assert.equal((await ask('https://x.example/on')).json()['og:title'], 'T');
    pages.set('https://x.example/round', { status: 302, headers: { location: '/round' } });
    assert.equal((await ask('https://x.example/round')).statusCode, 502);
  });

  it('tell nothing about this network, and do not ask again at once', async () => {
    const answer = await ask('https://inside.example/');
    assert.deepEqual([answer.statusCode, answer.json().errcode], [502, 'M_UNKNOWN']);
    assert.doesNotMatch(answer.body, /10\.0\.0\.1|ECONNREFUSED/);
    asked = [];
    assert.equal((await ask('https://inside.example/')).statusCode, 502);
    assert.deepEqual(asked, []);
  });

  it('are asked for once, however many want them', async () => {
    pages.set('https://x.example/popular', html('<title>P</title>'));
    asked = [];
    const answers = await Promise.all([1, 2, 3].map(() => ask('https://x.example/popular')));
    assert.deepEqual(
      answers.map((answer) => answer.json()['og:title']),
      ['P', 'P', 'P'],
    );
    assert.equal(asked.length, 1);
  });

  it('ask for the configured language, and read no more than they must', async () => {
    const sent: Array<{ url: string; language?: string; maxBytes: number; timeoutMs: number }> = [];
    let [read, discarded] = [0, 0];
    const endless = async function* () {
      const chunk = Buffer.from(`<title>Endless</title><p>${'x'.repeat(100_000)}`);
      for (;;) {
        read += chunk.length;
        yield chunk;
      }
    };
    const bounded: PreviewFetch = async (url, { headers, maxBytes, timeoutMs }) => {
      sent.push({ url, language: headers['accept-language'], maxBytes, timeoutMs });
      const type = url.endsWith('.mp4') ? 'video/mp4' : 'text/html';
      const hop = Number(/\/hop(\d)$/.exec(url)?.[1] ?? 0);
      const answer = hop
        ? { status: 302, headers: { location: `/hop${hop - 1}` } }
        : { status: 200, headers: { 'content-type': type } };
      return { ...answer, body: endless(), discard: () => void discarded++ };
    };
    const { app: own } = appOn(bench, {
      previews: (media) => new UrlPreviews({ db: bench.db, media, fetch: bounded, language: 'de, en;q=0.7' }),
    });
    const preview = (path: string) =>
      own.inject({
        url: '/_matrix/client/v1/media/preview_url',
        query: { url: `https://bounded.example${path}` },
      });
    assert.equal((await preview('/page')).json()['og:title'], 'Endless');
    assert.ok(read <= 1024 * 1024 + 200_000, `${read} bytes were read`);
    assert.equal(discarded, 1);
    assert.deepEqual((await preview('/film.mp4')).json(), {});
    assert.ok(read <= 1024 * 1024 + 200_000, 'nothing of a film is read');
    assert.equal((await preview('/hop5')).statusCode, 200);
    assert.equal((await preview('/hop6')).statusCode, 502);
    assert.equal(discarded, sent.length);
    for (const { language, maxBytes, timeoutMs } of sent) {
      assert.equal(language, 'de, en;q=0.7');
      assert.ok(maxBytes === 10 * 1024 * 1024 && timeoutMs > 0 && timeoutMs <= 15_000);
    }
  });
});
