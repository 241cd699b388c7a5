import type { Readable } from 'node:stream';

/** Where the bytes of media are kept, each content once under its hash. */
export interface MediaStore {
  /**
   * Takes content in without promising to keep it yet. Throws `ContentTooLargeError` beyond `maxBytes`. A store may have
   * it already after this, so what gets no name in the end is to be deleted like what lost its last one.
   */
  stage(source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>, maxBytes: number): Promise<StagedContent>;
  /** The content or the part from `start` to `end` (inclusive). */
  read(sha256: Buffer, range?: { start: number; end: number }): Readable;
  has(sha256: Buffer): Promise<boolean>;
  delete(sha256: Buffer): Promise<void>;
  close?(): Promise<void>;
}

export interface StagedContent {
  readonly sha256: Buffer;
  readonly size: number;
  /** Makes it part of the store, for as long as nobody deletes it; content that is there already is left as it is. */
  commit(): Promise<void>;
  /** Frees what staging took; to be called in every case, does nothing else after `commit`. */
  discard(): Promise<void>;
}

export class ContentTooLargeError extends Error {
  override readonly name = 'ContentTooLargeError';
}
