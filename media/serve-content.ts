import { Readable } from 'node:stream';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { type ByteRange, byteRange } from './byte-range.ts';

export interface ServedContent {
  readonly sha256: Buffer;
  readonly size: number;
  readonly contentType: string;
  readonly disposition: string;
  /** Also for caches that many users share; content that needs a token is for the user's own. */
  readonly shared: boolean;
  open(range?: ByteRange): Promise<Readable>;
}

/** As the spec recommends: nothing that is served can run scripts, whatever its type says. */
const CONTENT_SECURITY_POLICY =
  "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';";
/** Content behind a name never changes, but it may be deleted. */
const MAX_AGE_SECONDS = 86_400;

/**
 * Answers with content: all of it, the part that was asked for, or that the client has it already.
 * https://spec.matrix.org/v1.18/client-server-api/#content-repository
 */
export async function serveContent(
  request: FastifyRequest,
  reply: FastifyReply,
  content: ServedContent,
): Promise<FastifyReply> {
  const { size } = content;
  const etag = `"${content.sha256.toString('base64url')}"`;
  const ifRange = request.headers['if-range'];
  const range =
    ifRange === undefined || ifRange === etag ? byteRange(request.headers.range, size) : undefined;
  if (range === 'unsatisfiable') {
    reply.header('content-range', `bytes */${size}`);
    throw new MatrixError(416, 'M_UNKNOWN', 'The content has no such range');
  }
  const known = names(request.headers['if-none-match'], etag);
  // Before the headers: they are not those of an error.
  const body = known || request.method === 'HEAD' ? Readable.from([]) : await content.open(range);
  reply.headers({
    'content-type': content.contentType,
    'content-disposition': content.disposition,
    'content-security-policy': CONTENT_SECURITY_POLICY,
    'cross-origin-resource-policy': 'cross-origin',
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'x-robots-tag': 'noindex, nofollow, noarchive, noimageindex',
    'cache-control': `${content.shared ? 'public' : 'private'}, max-age=${MAX_AGE_SECONDS}, immutable`,
    'accept-ranges': 'bytes',
    etag,
  });
  if (known) return reply.code(304).send();
  if (range === undefined) return reply.header('content-length', size).send(body);
  return reply
    .code(206)
    .header('content-range', `bytes ${range.start}-${range.end}/${size}`)
    .header('content-length', range.end - range.start + 1)
    .send(body);
}

function names(ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false;
  return ifNoneMatch.split(',').some((one) => one.trim().replace(/^W\//, '') === etag || one.trim() === '*');
}
