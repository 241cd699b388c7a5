import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { crc32 } from 'node:zlib';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import { appOn, type Bench, openBench, SERVER, upload } from './harness.ts';

const picture = (width: number, height: number, alpha = 1) =>
  sharp({ create: { width, height, channels: 4, background: { r: 200, g: 30, b: 30, alpha } } });

/** A GIF of two frames. */
async function animation(side: number): Promise<Buffer> {
  const frame = (shade: number) => Buffer.alloc(side * side * 3, shade);
  return sharp(Buffer.concat([frame(10), frame(240)]), {
    raw: { width: side, height: side * 2, channels: 3, pageHeight: side },
  })
    .gif({ delay: [100, 100] })
    .toBuffer();
}

/** The beginning of a HEIC file: a format that the decoders here do not know. */
const HEIC = Buffer.from('\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\0', 'latin1');

describe('thumbnails', () => {
  let bench: Bench;
  let app: FastifyInstance;
  before(async () => {
    bench = await openBench();
    ({ app } = appOn(bench));
  });
  after(() => bench.close());

  const ask = (id: string, query: string, on = app) =>
    on.inject({ url: `/_matrix/client/v1/media/thumbnail/${SERVER}/${id}?${query}` });
  const sizeOf = async (image: Buffer) => {
    const { width, height, pages, format } = await sharp(image).metadata();
    return { width, height, frames: pages ?? 1, format };
  };

  it('keep the shape when scaled and have the wanted one when cropped', async () => {
    const id = await upload(app, await picture(1000, 500).jpeg().toBuffer(), 'image/jpeg');
    const cases: Array<[string, number, number]> = [
      ['width=320&height=240', 320, 160],
      ['width=300&height=300&method=scale', 320, 160],
      ['width=96&height=96&method=crop', 96, 96],
      ['width=30&height=30&method=crop', 32, 32],
    ];
    for (const [query, width, height] of cases) {
      const answer = await ask(id, query);
      assert.equal(answer.statusCode, 200, answer.body);
      const size = await sizeOf(answer.rawPayload);
      assert.deepEqual([size.width, size.height, size.format], [width, height, 'jpeg'], query);
      assert.equal(answer.headers['content-type'], 'image/jpeg');
      assert.equal(answer.headers['content-disposition'], 'inline; filename=thumbnail.jpeg');
      assert.ok((await ask(id, query)).rawPayload.equals(answer.rawPayload), 'made once');
    }
  });

  it('are the picture itself when it is small, and never larger', async () => {
    const small = await picture(40, 20).png().toBuffer();
    const id = await upload(app, small, 'image/png');
    assert.ok((await ask(id, 'width=320&height=240')).rawPayload.equals(small));
    const cropped = await sizeOf((await ask(id, 'width=32&height=32&method=crop')).rawPayload);
    assert.ok(cropped.width <= 40 && cropped.height <= 20);
  });

  it('stay transparent, and upright', async () => {
    const clear = await upload(app, await picture(200, 200, 0.5).webp().toBuffer(), 'image/webp');
    const answer = await ask(clear, 'width=32&height=32');
    assert.equal(answer.headers['content-type'], 'image/png');
    assert.equal((await sharp(answer.rawPayload).metadata()).hasAlpha, true);
    const turned = await upload(
      app,
      await picture(400, 200).jpeg().withMetadata({ orientation: 6 }).toBuffer(),
      'image/jpeg',
    );
    const { width, height } = await sizeOf((await ask(turned, 'width=96&height=96')).rawPayload);
    assert.deepEqual([width, height], [48, 96]);
  });

  it('move only when asked to', async () => {
    const id = await upload(app, await animation(200), 'image/gif');
    const still = await ask(id, 'width=32&height=32');
    assert.deepEqual(await sizeOf(still.rawPayload), { width: 32, height: 32, frames: 1, format: 'png' });
    const moving = await ask(id, 'width=32&height=32&animated=true');
    assert.equal(moving.headers['content-type'], 'image/webp');
    const { width, frames } = await sizeOf(moving.rawPayload);
    assert.deepEqual([width, frames], [32, 2]);
    const small = await upload(app, await animation(20), 'image/gif');
    assert.equal((await sizeOf((await ask(small, 'width=32&height=32')).rawPayload)).frames, 1);
    assert.equal((await sizeOf((await ask(small, 'width=32&height=32&animated=true')).rawPayload)).frames, 2);
  });

  it('are still when the picture moves unseen by the decoder', async () => {
    // `acTL` before the first `IDAT` makes it an APNG, here of one frame.
    const control = Buffer.from('00000008' + '6163544c' + '0000000100000000' + '00000000', 'hex');
    control.writeUInt32BE(crc32(control.subarray(4, 16)), 16);
    const apngOf = async (width: number, height: number) => {
      const png = await picture(width, height).png().toBuffer();
      return Buffer.concat([png.subarray(0, 33), control, png.subarray(33)]);
    };
    const apng = await apngOf(30, 20);
    const id = await upload(app, apng, 'image/apng');
    const still = (await ask(id, 'width=32&height=32')).rawPayload;
    assert.equal(still.includes('acTL'), false);
    assert.deepEqual(await sizeOf(still), { width: 30, height: 20, frames: 1, format: 'png' });
    assert.ok((await ask(id, 'width=32&height=32&animated=true')).rawPayload.equals(apng));
    const larger = await upload(app, await apngOf(100, 100), 'image/apng');
    const scaled = (await ask(larger, 'width=32&height=32&animated=true')).rawPayload;
    assert.deepEqual(await sizeOf(scaled), { width: 32, height: 32, frames: 1, format: 'png' });
  });

  it('are made of AVIF, in a type that the specification names', async () => {
    for (const side of [300, 20]) {
      const avif = await upload(
        app,
        await picture(side, side, 1).avif({ effort: 0 }).toBuffer(),
        'image/heic',
      );
      const answer = await ask(avif, 'width=32&height=32');
      assert.equal(answer.statusCode, 200, answer.body);
      assert.match(String(answer.headers['content-type']), /^image\/(png|jpeg)$/);
      assert.equal((await sizeOf(answer.rawPayload)).width, Math.min(side, 32));
    }
  });

  it('move out of WebP too', async () => {
    const webp = await sharp(await animation(100), { animated: true })
      .webp()
      .toBuffer();
    const id = await upload(app, webp, 'image/webp');
    assert.equal((await sizeOf((await ask(id, 'width=32&height=32&animated=true')).rawPayload)).frames, 2);
    assert.equal((await sizeOf((await ask(id, 'width=32&height=32&animated=false')).rawPayload)).frames, 1);
    assert.equal((await sizeOf((await ask(id, 'width=320&height=320&animated=false')).rawPayload)).frames, 1);
  });

  it('are not made of what is no picture, whatever it is called', async () => {
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>';
    const torn = (await picture(300, 300).png().toBuffer()).subarray(0, 100);
    for (const [content, type] of [
      ['plain text', 'image/png'],
      [svg, 'image/svg+xml'],
      [svg, 'image/png'],
      [HEIC, 'image/heic'],
      [`BM${' '.repeat(60)}`, 'image/bmp'],
      [`II*\0${' '.repeat(60)}`, 'image/tiff'],
      ['%PDF-1.7\n1 0 obj', 'application/pdf'],
      [torn, 'image/png'],
      ['', 'image/png'],
    ] as const) {
      const answer = await ask(await upload(app, content, type), 'width=32&height=32');
      assert.deepEqual([answer.statusCode, answer.json().errcode], [400, 'M_UNKNOWN']);
    }
  });

  it('are not made of what has too many pixels or bytes', async () => {
    const bomb = await picture(3000, 3000).png().toBuffer();
    assert.ok(bomb.length < 200_000);
    for (const thumbnailLimits of [{ maxPixels: 1_000_000 }, { maxSourceBytes: 1000 }]) {
      const strict = appOn(bench, { thumbnailLimits }).app;
      const answer = await ask(await upload(strict, bomb, 'image/png'), 'width=64&height=32', strict);
      assert.deepEqual([answer.statusCode, answer.json().errcode], [413, 'M_TOO_LARGE']);
    }
  });

  it('go with the picture', async () => {
    const { app: own, media } = appOn(bench);
    const [large, small] = [await picture(111, 77).png().toBuffer(), await picture(11, 7).png().toBuffer()];
    for (const image of [large, small]) {
      const id = await upload(own, image, 'image/png');
      await ask(id, 'width=32&height=32', own);
      const { sha256 } = await media.find(SERVER, id, { waitMs: 0, allowRemote: false });
      const rows = await bench.db.query<{ thumbnail_sha256: Buffer }>(
        'SELECT thumbnail_sha256 FROM media_thumbnails WHERE sha256 = $1',
        [sha256],
      );
      assert.equal(rows.length, 1);
      await media.remove(SERVER, id);
      assert.equal(await bench.store.has(sha256), false);
      assert.equal(await bench.store.has(rows[0]!.thumbnail_sha256), false);
    }
  });
});
