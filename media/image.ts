import sharp from 'sharp';
import type { ThumbnailKey } from './thumbnail-table.ts';

export type ImageType = 'image/png' | 'image/jpeg' | 'image/gif' | 'image/webp' | 'image/avif';

// Only the decoders of these types, whatever a file says that it is: libvips would take SVG, PDF, TIFF and more.
sharp.block({ operation: ['VipsForeignLoad'] });
sharp.unblock({
  operation: [
    'VipsForeignLoadPngBuffer',
    'VipsForeignLoadJpegBuffer',
    'VipsForeignLoadNsgifBuffer',
    'VipsForeignLoadWebpBuffer',
    'VipsForeignLoadHeifBuffer',
  ],
});
sharp.cache(false);
sharp.concurrency(1);

const MAX_FRAMES = 200;
/** As sharp says it; `canAnimate` has counted them. */
const ALL_FRAMES = -1;
/** What takes longer is made to take long. */
const MAX_SECONDS = 20;

/** What a file is by its first bytes; what its sender says it is does not count. */
export function sniffImage(head: Buffer): ImageType | undefined {
  const ascii = (from: number, to: number) => head.toString('latin1', from, to);
  if (head.length < 12) return undefined;
  if (head.readUInt32BE(0) === 0x89504e47 && head.readUInt32BE(4) === 0x0d0a1a0a) return 'image/png';
  if (head[0] === 0xff && head[1] === 0xd8 && head[2] === 0xff) return 'image/jpeg';
  if (ascii(0, 6) === 'GIF87a' || ascii(0, 6) === 'GIF89a') return 'image/gif';
  if (ascii(0, 4) === 'RIFF' && ascii(8, 12) === 'WEBP') return 'image/webp';
  return ascii(4, 8) === 'ftyp' && brandsOf(head).some((brand) => AVIF_BRANDS.has(brand))
    ? 'image/avif'
    : undefined;
}

const AVIF_BRANDS = new Set(['avif', 'avis']);

/** What a file in the format of ISO 14496-12 says that it is compatible with: its first box, `ftyp`. */
function brandsOf(head: Buffer): string[] {
  const end = Math.min(head.readUInt32BE(0), head.length, 256);
  const brands = [head.toString('latin1', 8, 12)];
  for (let at = 16; at + 4 <= end; at += 4) brands.push(head.toString('latin1', at, at + 4));
  return brands;
}

/**
 * Whether a file moves when it is shown as it is, in a way that the decoders here do not see: they take the still
 * picture in it. APNG has a chunk `acTL` before its first `IDAT`, AVIF a brand of its own.
 */
export function movesUnseen(image: Buffer, type: ImageType): boolean {
  if (type === 'image/avif') return brandsOf(image).includes('avis');
  if (type !== 'image/png') return false;
  for (let at = 8; at + 12 <= image.length; at += image.readUInt32BE(at) + 12) {
    const chunk = image.toString('latin1', at + 4, at + 8);
    if (chunk === 'acTL') return true;
    if (chunk === 'IDAT') return false;
  }
  return false;
}

export interface ImageSize {
  width: number;
  height: number;
  frames: number;
}

/** The picture's size as it is shown, from its headers alone. Throws for what is no image after all. */
export async function imageSize(image: Buffer): Promise<ImageSize> {
  // Nothing is decoded for this, so it may be of any size: the caller says what is too large.
  const { width, height, pages, pageHeight, orientation } = await sharp(image, {
    limitInputPixels: false,
    animated: true,
  }).metadata();
  const shownHeight = pageHeight ?? height;
  const turned = orientation !== undefined && orientation >= 5;
  return turned
    ? { width: shownHeight, height: width, frames: pages ?? 1 }
    : { width, height: shownHeight, frames: pages ?? 1 };
}

/** A smaller picture: without metadata, upright, never enlarged. */
export async function makeThumbnail(
  image: Buffer,
  type: ImageType,
  key: ThumbnailKey,
  maxPixels: number,
): Promise<{ data: Buffer; contentType: string }> {
  const source = sharp(image, {
    limitInputPixels: maxPixels,
    failOn: 'error',
    sequentialRead: true,
    pages: key.animated ? ALL_FRAMES : 1,
  }).timeout({ seconds: MAX_SECONDS });
  const resized = source.autoOrient().resize({
    width: key.width,
    height: key.height,
    fit: key.method === 'crop' ? 'cover' : 'inside',
    withoutEnlargement: true,
  });
  if (key.animated)
    return { data: await resized.webp({ quality: 80 }).toBuffer(), contentType: 'image/webp' };
  const opaque =
    type === 'image/jpeg' ||
    (type !== 'image/png' && type !== 'image/gif' && !(await hasAlpha(image, maxPixels)));
  if (opaque)
    return {
      data: await resized.jpeg({ quality: 80, mozjpeg: false }).toBuffer(),
      contentType: 'image/jpeg',
    };
  return { data: await resized.png({ compressionLevel: 8 }).toBuffer(), contentType: 'image/png' };
}

export function canAnimate(size: ImageSize, maxPixels: number): boolean {
  return size.frames > 1 && size.frames <= MAX_FRAMES && size.width * size.height * size.frames <= maxPixels;
}

async function hasAlpha(image: Buffer, maxPixels: number): Promise<boolean> {
  return (await sharp(image, { limitInputPixels: maxPixels }).metadata()).hasAlpha;
}
