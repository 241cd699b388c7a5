import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import { forbidden, MatrixError, notFound, tooLarge } from '@trellis/protocol/errors.ts';
import { isServerName } from '@trellis/protocol/identifiers.ts';
import type { Database } from '@trellis/storage/database.ts';
import { cleanContentType, cleanFilename, filenameOf } from './content-disposition.ts';
import { ContentLocks } from './content-locks.ts';
import { ContentTooLargeError, type MediaStore, type StagedContent } from './media-store.ts';
import {
  isReservation,
  type MediaInfo,
  type MediaName,
  MediaTable,
  type Reservation,
  type Unused,
} from './media-table.ts';
import { removeThumbnailsOf } from './thumbnail-table.ts';

/** Media of other servers; federation implements it. Its errors are `MatrixError`s. */
export interface RemoteMedia {
  get<T>(
    request: { serverName: string; mediaId: string; maxBytes: number; timeoutMs: number },
    read: (answer: {
      contentType: string | undefined;
      contentDisposition: string | undefined;
      body: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
    }) => Promise<T>,
  ): Promise<T>;
}

export interface MediaLimits {
  /** One upload. */
  maxUploadBytes: number;
  /** One file of another server. */
  maxRemoteBytes: number;
  /** All files of other servers together. */
  maxRemoteCacheBytes: number;
  /** All uploads of one user, `undefined` for no limit. */
  maxUserBytes: number | undefined;
  /** Reserved ids of one user that wait for their upload. */
  maxPendingUploads: number;
  pendingUploadLifetimeMs: number;
  remoteTimeoutMs: number;
  /** Images of URL previews are kept for this long after someone asked for them. */
  previewImageLifetimeMs: number;
  /** Uploads that nobody asked for this long are deleted; `undefined` for never. */
  localLifetimeMs: number | undefined;
  /** The same for files of other servers. */
  remoteLifetimeMs: number | undefined;
}

export const DEFAULT_MEDIA_LIMITS: MediaLimits = {
  maxUploadBytes: 50 * 1024 * 1024,
  maxRemoteBytes: 50 * 1024 * 1024,
  maxRemoteCacheBytes: 20 * 1024 ** 3,
  maxUserBytes: undefined,
  maxPendingUploads: 20,
  pendingUploadLifetimeMs: 24 * 3_600_000,
  remoteTimeoutMs: 60_000,
  previewImageLifetimeMs: 30 * 24 * 3_600_000,
  localLifetimeMs: undefined,
  remoteLifetimeMs: undefined,
};

export interface Upload {
  userId: string;
  body: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
  contentType: string | undefined;
  filename: string | undefined;
}

/** Downloads that are written down as accesses at most once in this time. */
const ACCESS_RESOLUTION = 3_600_000;
const MAX_REMOTE_FETCHES = 64;
const REMOVED_AT_A_TIME = 500;
const ARRIVED = 'media/arrived';

/**
 * The content repository: names (`mxc://`) and what is behind them, here and on other servers.
 * https://spec.matrix.org/v1.18/client-server-api/#content-repository
 */
export class MediaRepository {
  readonly serverName: string;
  readonly limits: MediaLimits;
  readonly store: MediaStore;
  readonly locks: ContentLocks;
  readonly #table: MediaTable;
  readonly #remote: RemoteMedia | undefined;
  readonly #freeze: boolean;
  readonly #clock: () => number;
  readonly #fetching = new Map<string, Promise<MediaInfo>>();
  readonly #cluster: Cluster;
  /** Downloads that wait for an upload. */
  readonly #arrivals = new Map<string, Set<() => void>>();
  readonly #touched = new Map<string, number>();

  constructor(options: {
    serverName: string;
    db: Database;
    store: MediaStore;
    remote?: RemoteMedia;
    limits?: Partial<MediaLimits>;
    /** From now on, media that comes in is served by the authenticated endpoints only. */
    freezeUnauthenticated?: boolean;
    clock?: () => number;
    cluster?: Cluster;
  }) {
    this.serverName = options.serverName;
    this.store = options.store;
    this.limits = { ...DEFAULT_MEDIA_LIMITS, ...options.limits };
    this.locks = new ContentLocks(options.db);
    this.#table = new MediaTable(options.db, this.locks);
    this.#remote = options.remote;
    this.#freeze = options.freezeUnauthenticated ?? false;
    this.#clock = options.clock ?? Date.now;
    this.#cluster = options.cluster ?? alone();
    this.#cluster.onAnnounce(ARRIVED, (mediaId: string) => {
      for (const wake of this.#arrivals.get(mediaId) ?? []) wake();
    });
  }

  /** @returns the new media id */
  async upload(upload: Upload): Promise<string> {
    const mediaId = newMediaId();
    await this.#checkQuota(upload.userId);
    await this.#keep(this.serverName, mediaId, upload.userId, upload, this.limits.maxUploadBytes);
    return mediaId;
  }

  /** Names media before it is there. */
  async reserve(userId: string): Promise<{ mediaId: string; expiresTs: number }> {
    const { maxPendingUploads, pendingUploadLifetimeMs } = this.limits;
    const mediaId = newMediaId();
    const now = this.#clock();
    const expiresTs = now + pendingUploadLifetimeMs;
    const reserved = await this.#table.reserve(
      this.serverName,
      mediaId,
      userId,
      now,
      expiresTs,
      maxPendingUploads,
      this.#freeze,
    );
    if (!reserved)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too many uploads are pending', {
        retry_after_ms: 60_000,
      });
    return { mediaId, expiresTs };
  }

  /** Fills a reserved name. */
  async uploadTo(serverName: string, mediaId: string, upload: Upload): Promise<void> {
    const found =
      serverName === this.serverName && isMediaId(mediaId)
        ? await this.#table.find(serverName, mediaId)
        : undefined;
    if (!found) throw notFound('Unknown media id');
    if (found.userId !== upload.userId)
      throw forbidden('Only the user who created the media id may upload to it');
    if (!isReservation(found)) throw alreadyUploaded();
    if (isOver(found, this.#clock())) throw notFound('The media id has expired');
    await this.#checkQuota(upload.userId);
    await this.#keep(serverName, mediaId, upload.userId, upload, this.limits.maxUploadBytes);
    // Whoever is not told looks again soon.
    await this.#cluster.announce(ARRIVED, mediaId).catch(() => {});
  }

  /**
   * What is behind a name, fetched from its server when it is not here.
   *
   * @param options.waitMs how long to wait for an upload that is to come
   */
  async find(
    serverName: string,
    mediaId: string,
    options: { waitMs: number; allowRemote: boolean; unauthenticated?: boolean },
  ): Promise<MediaInfo> {
    if (!isMediaId(mediaId) || !isServerName(serverName)) throw notFound('Not found');
    const info =
      serverName === this.serverName
        ? await this.#findLocal(mediaId, options.waitMs)
        : await this.#findRemote(serverName, mediaId, options);
    if (info.quarantinedBy !== null) throw notFound('Not found');
    if (options.unauthenticated && info.authenticated) throw notFound('Not found');
    this.#noteAccess(info);
    return info;
  }

  /** The content, once its beginning is here: before, what goes wrong can still be told in an answer. */
  async open(info: { sha256: Buffer }, range?: { start: number; end: number }): Promise<Readable> {
    const content = this.store.read(info.sha256, range);
    await once(content, 'readable');
    return content;
  }

  /** Keeps content that this server made or fetched itself, such as the image of a preview. */
  async keepOwn(
    body: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    contentType: string,
    maxBytes: number,
  ): Promise<string> {
    const mediaId = newMediaId();
    await this.#keep(this.serverName, mediaId, null, { body, contentType, filename: undefined }, maxBytes);
    return mediaId;
  }

  /** Forgets a name, and its content and thumbnails unless another name has the same. */
  async remove(origin: string, mediaId: string): Promise<boolean> {
    const sha256 = await this.#table.remove(origin, mediaId);
    if (!sha256) return false;
    await this.#erase(sha256);
    return true;
  }

  /** Runs `name`, which is to commit what was staged; content that gets no name does not stay. */
  async naming<T>(staged: StagedContent, name: () => Promise<T>): Promise<T> {
    try {
      return await name();
    } catch (error) {
      // What went wrong first is what is told.
      await this.#erase(staged.sha256).catch(() => {});
      throw error;
    } finally {
      await staged.discard();
    }
  }

  /** Deletes content that has no name, with its thumbnails. */
  async #erase(sha256: Buffer): Promise<void> {
    const thumbnails: Buffer[] = [];
    await this.#table.eraseUnreferenced(sha256, async (tx) => {
      thumbnails.push(...(await removeThumbnailsOf(tx, sha256)));
      await this.store.delete(sha256);
    });
    for (const thumbnail of thumbnails)
      await this.#table.eraseUnreferenced(thumbnail, () => this.store.delete(thumbnail));
  }

  /**
   * To be called now and then: drops reservations that ran out, what nobody looked at for the time that it is kept, and
   * what the cache of remote media cannot hold.
   */
  async maintain(): Promise<void> {
    const { maxRemoteCacheBytes, previewImageLifetimeMs, localLifetimeMs, remoteLifetimeMs } = this.limits;
    await this.#table.removeExpired(this.#clock());
    const before = this.#clock() - previewImageLifetimeMs;
    await this.#removeAll(() => this.#table.unownedSince(this.serverName, before, REMOVED_AT_A_TIME));
    if (localLifetimeMs !== undefined)
      await this.removeUnused({ where: 'local', before: this.#clock() - localLifetimeMs });
    if (remoteLifetimeMs !== undefined)
      await this.removeUnused({ where: 'remote', before: this.#clock() - remoteLifetimeMs });
    await this.#removeAll(() =>
      this.#table.remoteBeyond(this.serverName, maxRemoteCacheBytes, REMOVED_AT_A_TIME),
    );
  }

  /** Removes media that nobody asked for since a time. @returns what is gone */
  removeUnused(unused: Unused): Promise<MediaName[]> {
    return this.#removeAll(() => this.#table.unused(this.serverName, unused, REMOVED_AT_A_TIME));
  }

  async #removeAll(next: () => Promise<MediaName[]>): Promise<MediaName[]> {
    const removed: MediaName[] = [];
    for (;;) {
      const batch = await next();
      if (batch.length === 0) return removed;
      for (const { origin, mediaId } of batch) await this.remove(origin, mediaId);
      removed.push(...batch);
    }
  }

  async #findLocal(mediaId: string, waitMs: number): Promise<MediaInfo> {
    const deadline = this.#clock() + waitMs;
    for (;;) {
      const found = await this.#table.find(this.serverName, mediaId);
      if (!found) throw notFound('Not found');
      if (!isReservation(found)) return found;
      if (isOver(found, this.#clock()) || found.quarantinedBy !== null) throw notFound('Not found');
      const left = deadline - this.#clock();
      if (left <= 0) throw new MatrixError(504, 'M_NOT_YET_UPLOADED', 'The media has not been uploaded yet');
      // The process that it came to may have died before it told of it.
      await this.#arrival(mediaId, Math.min(left, 2_000));
    }
  }

  async #findRemote(
    serverName: string,
    mediaId: string,
    options: { allowRemote: boolean; unauthenticated?: boolean },
  ): Promise<MediaInfo> {
    const found = await this.#table.find(serverName, mediaId);
    if (found && !isReservation(found)) return found;
    if (found?.quarantinedBy) throw notFound('Not found');
    // While frozen, the unauthenticated endpoints bring nothing new in.
    if (!options.allowRemote || !this.#remote || (options.unauthenticated && this.#freeze))
      throw notFound('Not found');
    const key = `${serverName}/${mediaId}`;
    const running = this.#fetching.get(key);
    if (running) return running;
    if (this.#fetching.size >= MAX_REMOTE_FETCHES)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too much media is being fetched', {
        retry_after_ms: 2_000,
      });
    const started = this.#fetch(this.#remote, serverName, mediaId).finally(() => this.#fetching.delete(key));
    this.#fetching.set(key, started);
    return started;
  }

  async #fetch(remote: RemoteMedia, serverName: string, mediaId: string): Promise<MediaInfo> {
    const { maxRemoteBytes, remoteTimeoutMs } = this.limits;
    try {
      return await remote.get(
        { serverName, mediaId, maxBytes: maxRemoteBytes, timeoutMs: remoteTimeoutMs },
        async ({ contentType, contentDisposition, body }) =>
          this.#keep(
            serverName,
            mediaId,
            null,
            { contentType, filename: filenameOf(contentDisposition) ?? undefined, body },
            maxRemoteBytes,
          ),
      );
    } catch (error) {
      // What is too large from elsewhere is not the client's fault.
      if (error instanceof MatrixError && error.errcode === 'M_TOO_LARGE')
        throw new MatrixError(502, 'M_TOO_LARGE', 'The remote content is too large');
      throw error;
    }
  }

  async #keep(
    origin: string,
    mediaId: string,
    userId: string | null,
    content: Omit<Upload, 'userId'>,
    maxBytes: number,
  ): Promise<MediaInfo> {
    let staged: StagedContent;
    try {
      staged = await this.store.stage(content.body, maxBytes);
    } catch (error) {
      if (error instanceof ContentTooLargeError)
        throw tooLarge(`The content is larger than ${maxBytes} bytes`);
      throw error;
    }
    return this.naming(staged, async () => {
      const info = {
        origin,
        mediaId,
        userId,
        createdTs: this.#clock(),
        sha256: staged.sha256,
        size: staged.size,
        contentType: cleanContentType(content.contentType),
        filename: cleanFilename(content.filename),
        authenticated: this.#freeze,
      };
      const named = await this.#table.insert(info, () => staged.commit());
      if (named) return named;
      // Another process fetched it at the same time.
      const found = origin === this.serverName ? undefined : await this.#table.find(origin, mediaId);
      if (!found || isReservation(found)) throw alreadyUploaded();
      await this.#erase(staged.sha256);
      return found;
    });
  }

  async #checkQuota(userId: string): Promise<void> {
    const { maxUserBytes } = this.limits;
    if (maxUserBytes !== undefined && (await this.#table.sizeOf(userId)) >= maxUserBytes)
      throw forbidden('You have reached your quota for uploaded content');
  }

  #arrival(mediaId: string, waitMs: number): Promise<void> {
    return new Promise((resolve) => {
      const waiting = this.#arrivals.get(mediaId) ?? new Set();
      this.#arrivals.set(mediaId, waiting);
      const wake = () => {
        clearTimeout(timer);
        waiting.delete(wake);
        if (waiting.size === 0) this.#arrivals.delete(mediaId);
        resolve();
      };
      const timer = setTimeout(wake, waitMs);
      waiting.add(wake);
    });
  }

  #noteAccess({ origin, mediaId }: MediaInfo): void {
    const key = `${origin}/${mediaId}`;
    const now = this.#clock();
    if ((this.#touched.get(key) ?? 0) > now - ACCESS_RESOLUTION) return;
    if (this.#touched.size > 50_000) this.#touched.clear();
    this.#touched.set(key, now);
    // An access that is not noted only makes the cache forget it sooner.
    this.#table.touch(origin, mediaId, now).catch(() => {});
  }
}

/** The spec's alphabet for media ids: nothing that could be a path. */
export function isMediaId(mediaId: string): boolean {
  return /^[A-Za-z0-9_-]{1,255}$/.test(mediaId);
}

function isOver({ expiresTs }: Reservation, now: number): boolean {
  return expiresTs !== null && expiresTs <= now;
}

function newMediaId(): string {
  return randomBytes(18).toString('base64url');
}

function alreadyUploaded(): MatrixError {
  return new MatrixError(409, 'M_CANNOT_OVERWRITE_MEDIA', 'The media id has content already');
}
