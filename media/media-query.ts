import { invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { ThumbnailRequest } from './thumbnails.ts';

/** Query parameters of the content repository's endpoints. */
export type MediaQuery = Readonly<Record<string, string | string[] | undefined>>;

const DEFAULT_WAIT = 20_000;
const MAX_WAIT = 60_000;

/** `timeout_ms`: how long to wait for content that is yet to be uploaded. */
export function waitOf(query: MediaQuery): number {
  const { timeout_ms: text } = query;
  if (text === undefined) return DEFAULT_WAIT;
  return Math.min(integer('timeout_ms', text), MAX_WAIT);
}

/** `allow_remote`: `false` keeps servers from asking each other in circles. */
export function allowRemoteOf(query: MediaQuery): boolean {
  return boolean('allow_remote', query.allow_remote) ?? true;
}

export function thumbnailOf(query: MediaQuery): ThumbnailRequest {
  const method = query.method ?? 'scale';
  if (method !== 'crop' && method !== 'scale') throw invalidParam('method is neither "crop" nor "scale"');
  return {
    width: side('width', query.width),
    height: side('height', query.height),
    method,
    animated: boolean('animated', query.animated) ?? false,
  };
}

function side(name: string, text: string | string[] | undefined): number {
  if (text === undefined) throw missingParam(`Missing ${name}`);
  // The spec names this code for sizes that make no sense.
  if (typeof text !== 'string' || !/^\d{1,9}$/.test(text) || Number(text) === 0)
    throw new MatrixError(400, 'M_UNKNOWN', `${name} is not a positive integer`);
  return Number(text);
}

export function integer(name: string, text: string | string[]): number {
  if (typeof text !== 'string' || !/^\d{1,15}$/.test(text)) throw invalidParam(`${name} is not an integer`);
  return Number(text);
}

export function boolean(name: string, text: string | string[] | undefined): boolean | undefined {
  if (text === undefined) return undefined;
  if (text === 'true') return true;
  if (text === 'false') return false;
  throw invalidParam(`${name} is neither "true" nor "false"`);
}
