import type { Json } from '@trellis/cluster/cluster.ts';
import type { Jobs } from '@trellis/cluster/jobs.ts';
import { MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { Database } from '@trellis/storage/database.ts';
import { canAnimate, type ImageSize, imageSize, makeThumbnail, movesUnseen, sniffImage } from './image.ts';
import type { MediaInfo } from './media-table.ts';
import type { MediaRepository } from './repository.ts';
import { findThumbnail, insertThumbnail, type ThumbnailInfo, type ThumbnailKey } from './thumbnail-table.ts';
import { Turns } from './turns.ts';

export type { ThumbnailInfo };

export interface ThumbnailRequest {
  width: number;
  height: number;
  method: 'crop' | 'scale';
  animated: boolean;
}

export interface ThumbnailLimits {
  /** Larger files are not made thumbnails of. */
  maxSourceBytes: number;
  /** Nor images of more pixels, all frames together. */
  maxPixels: number;
  /** Made at a time; more wait, up to `maxWaiting`. */
  concurrency: number;
  maxWaiting: number;
}

export const DEFAULT_THUMBNAIL_LIMITS: ThumbnailLimits = {
  maxSourceBytes: 32 * 1024 * 1024,
  maxPixels: 64 * 1024 * 1024,
  concurrency: 2,
  maxWaiting: 200,
};

/**
 * Sides that thumbnails are made with, the spec's ones among them ("Thumbnails"): each side of a request is rounded up
 * to one of these, so that the number of thumbnails of a picture is bounded and squares stay square.
 */
const SIDES = [32, 64, 96, 128, 192, 240, 256, 320, 480, 600, 640, 800, 1200, 1600] as const;

type Source = Pick<MediaInfo, 'sha256' | 'size' | 'origin'>;
const TOO_MANY = 'Too many thumbnails are being made';

/** The name of the jobs, and what they are told. */
const JOB = 'thumbnail';
interface ThumbnailJob extends ThumbnailKey {
  readonly [name: string]: Json;
  /** Of the image, in hexadecimal. */
  readonly sha256: string;
  readonly size: number;
  readonly origin: string;
}

/** Makes and keeps thumbnails; with `jobs`, whichever process does those makes them. */
export class Thumbnails {
  readonly #db: Database;
  readonly #media: MediaRepository;
  readonly #limits: ThumbnailLimits;
  readonly #making = new Map<string, Promise<ThumbnailInfo>>();
  /** Decoding takes memory and a core each. */
  readonly #turns: Turns;
  readonly #jobs: Jobs | undefined;

  constructor(options: {
    db: Database;
    media: MediaRepository;
    limits?: Partial<ThumbnailLimits>;
    jobs?: Jobs | undefined;
  }) {
    this.#db = options.db;
    this.#media = options.media;
    this.#limits = { ...DEFAULT_THUMBNAIL_LIMITS, ...options.limits };
    const { concurrency, maxWaiting } = this.#limits;
    this.#turns = new Turns(concurrency, maxWaiting, TOO_MANY);
    this.#jobs = options.jobs;
    this.#jobs?.handle(JOB, (job: ThumbnailJob) => this.#do(job), { concurrency });
  }

  /** The thumbnail, or the image itself when it is no larger than asked for. */
  async get(info: MediaInfo, request: ThumbnailRequest): Promise<ThumbnailInfo> {
    const key = thumbnailKey(request);
    const known = await findThumbnail(this.#db, info.sha256, key);
    if (known) return known;
    const name = `${info.sha256.toString('hex')} ${key.width} ${key.height} ${key.method} ${key.animated}`;
    const making = this.#making.get(name);
    if (making) return making;
    const started = (
      this.#jobs ? this.#haveMade(this.#jobs, info, key, name) : this.#turns.run(() => this.#make(info, key))
    ).finally(() => this.#making.delete(name));
    this.#making.set(name, started);
    return started;
  }

  /** What comes of it is looked up: that alone counts. */
  async #haveMade(jobs: Jobs, info: MediaInfo, key: ThumbnailKey, name: string): Promise<ThumbnailInfo> {
    if (this.#making.size >= this.#limits.maxWaiting)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', TOO_MANY, { retry_after_ms: 2_000 });
    const { sha256, size, origin } = info;
    const job: ThumbnailJob = { ...key, sha256: sha256.toString('hex'), size, origin };
    await jobs.run(JOB, job, { id: name });
    return (
      (await findThumbnail(this.#db, sha256, key)) ?? (await this.#turns.run(() => this.#make(info, key)))
    );
  }

  async #do({ sha256, size, origin, width, height, method, animated }: ThumbnailJob): Promise<undefined> {
    const key: ThumbnailKey = { width, height, method, animated };
    const image = { sha256: Buffer.from(sha256, 'hex'), size, origin };
    await this.#turns.run(() => this.#make(image, key));
  }

  async #make(info: Source, key: ThumbnailKey): Promise<ThumbnailInfo> {
    const { maxSourceBytes, maxPixels } = this.#limits;
    if (info.size > maxSourceBytes) throw this.#tooLarge(info);
    const chunks: Buffer[] = [];
    for await (const chunk of await this.#media.open(info)) chunks.push(chunk as Buffer);
    const image = Buffer.concat(chunks);
    const type = sniffImage(image);
    if (!type) throw notAnImage();
    const size = await imageSize(image).catch(() => {
      throw notAnImage();
    });
    if (size.width * size.height > maxPixels) throw this.#tooLarge(info);
    const animated = key.animated && canAnimate(size, maxPixels);
    const moves = size.frames > 1 || movesUnseen(image, type);
    let thumbnail: ThumbnailInfo;
    // The specification names the types of thumbnails, and AVIF is none of them.
    if (fits(size, key) && type !== 'image/avif' && (!moves || key.animated)) {
      thumbnail = { sha256: info.sha256, size: info.size, contentType: type };
      await insertThumbnail(this.#media.locks, info.sha256, key, thumbnail, async () => {});
      return thumbnail;
    }
    const made = await makeThumbnail(image, type, { ...key, animated }, maxPixels).catch(() => {
      throw notAnImage();
    });
    const staged = await this.#media.store.stage([made.data], made.data.length);
    thumbnail = { sha256: staged.sha256, size: staged.size, contentType: made.contentType };
    await this.#media.naming(staged, () =>
      insertThumbnail(this.#media.locks, info.sha256, key, thumbnail, () => staged.commit()),
    );
    return thumbnail;
  }

  #tooLarge(info: Source): MatrixError {
    const message = 'The content is too large to thumbnail';
    return info.origin === this.#media.serverName
      ? tooLarge(message)
      : new MatrixError(502, 'M_TOO_LARGE', message);
  }
}

/** The size that is made for a request: at least as large as asked for, up to the largest there is. */
export function thumbnailKey({ width, height, method, animated }: ThumbnailRequest): ThumbnailKey {
  const up = (side: number) => SIDES.find((candidate) => candidate >= side) ?? SIDES.at(-1)!;
  return { width: up(width), height: up(height), method, animated };
}

function fits(size: ImageSize, key: ThumbnailKey): boolean {
  return size.width <= key.width && size.height <= key.height;
}

function notAnImage(): MatrixError {
  return new MatrixError(400, 'M_UNKNOWN', 'Cannot generate thumbnails for the requested content');
}
