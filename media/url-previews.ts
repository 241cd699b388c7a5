import { MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Database } from '@trellis/storage/database.ts';
import { decodeHtml } from './html-charset.ts';
import { readPage } from './html-preview.ts';
import { imageSize, sniffImage } from './image.ts';
import { type FetchedPage, isPage, PreviewFetcher, type PreviewFetcherOptions } from './preview-fetch.ts';
import { findPreview, removeExpiredPreviews, storePreview } from './preview-table.ts';
import type { MediaRepository } from './repository.ts';

export interface UrlPreviewsOptions extends PreviewFetcherOptions {
  readonly db: Database;
  readonly media: MediaRepository;
  readonly clock?: () => number;
  /** Told of pages that could not be got. */
  readonly onFailure?: (error: unknown, host: string) => void;
}

export type Preview = Record<string, unknown>;

const LIFETIME = 3_600_000;
/** A page that could not be got is not asked for again for this long. */
const FAILURE_LIFETIME = 60_000;
const LIMITS = { maxBytes: 10 * 1024 * 1024, maxPageBytes: 1024 * 1024, timeoutMs: 15_000 };
/** Each may hold a picture in memory. */
const MAX_RUNNING = 8;

/**
 * What is behind a URL, for clients to show beside it.
 * https://spec.matrix.org/v1.18/client-server-api/#get_matrixclientv1mediapreview_url
 */
export class UrlPreviews {
  readonly #db: Database;
  readonly #media: MediaRepository;
  readonly #fetcher: PreviewFetcher;
  readonly #clock: () => number;
  readonly #onFailure: (error: unknown, host: string) => void;
  readonly #running = new Map<string, Promise<Preview>>();
  readonly #failed: RecentlyUsed<string, MatrixError>;

  constructor(options: UrlPreviewsOptions) {
    this.#db = options.db;
    this.#media = options.media;
    this.#fetcher = new PreviewFetcher(options);
    this.#clock = options.clock ?? Date.now;
    this.#onFailure = options.onFailure ?? (() => {});
    this.#failed = new RecentlyUsed(1000, { ttl: FAILURE_LIFETIME });
  }

  async get(text: string | string[] | undefined): Promise<Preview> {
    if (typeof text !== 'string') throw missingParam('Missing url');
    const url = this.#fetcher.check(text);
    const known = await findPreview(this.#db, url.href, this.#clock());
    if (known) return known;
    const failure = this.#failed.get(url.href);
    if (failure) throw failure;
    const running = this.#running.get(url.href);
    if (running) return running;
    if (this.#running.size >= MAX_RUNNING)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too many previews are being made', {
        retry_after_ms: 2_000,
      });
    const started = this.#make(url).finally(() => this.#running.delete(url.href));
    this.#running.set(url.href, started);
    return started;
  }

  /** To be called now and then. */
  async maintain(): Promise<void> {
    await removeExpiredPreviews(this.#db, this.#clock());
  }

  async #make(url: URL): Promise<Preview> {
    const preview = await this.#read(url).catch((error: unknown) => {
      this.#onFailure(error, url.hostname);
      // What the network said stays here: it could tell about machines that only this server can reach.
      const refusal =
        error instanceof MatrixError ? error : new MatrixError(502, 'M_UNKNOWN', 'The URL could not be read');
      this.#failed.set(url.href, refusal);
      throw refusal;
    });
    const now = this.#clock();
    await storePreview(this.#db, url.href, preview, now, now + LIFETIME);
    return preview;
  }

  async #read(url: URL): Promise<Preview> {
    const page = await this.#fetcher.get(url, LIMITS);
    if (!isPage(page.contentType)) return this.#pictureOf(page);
    const { properties, image } = readPage(decodeHtml(page.body, page.contentType));
    return { ...properties, ...(image !== undefined && (await this.#picture(image, page.url))) };
  }

  /** A picture that cannot be had only makes the preview poorer. */
  async #picture(image: string, page: URL): Promise<Preview> {
    try {
      return await this.#pictureOf(await this.#fetcher.get(this.#fetcher.check(image, page), LIMITS));
    } catch (error) {
      this.#onFailure(error, page.hostname);
      return {};
    }
  }

  async #pictureOf({ body }: FetchedPage): Promise<Preview> {
    const type = sniffImage(body);
    if (!type) return {};
    const { width, height } = await imageSize(body);
    const mediaId = await this.#media.keepOwn([body], type, body.length);
    return {
      'og:image': `mxc://${this.#media.serverName}/${mediaId}`,
      'og:image:type': type,
      'og:image:width': width,
      'og:image:height': height,
      'matrix:image:size': body.length,
    };
  }
}
