import { boundedBody, headerOf } from './bounded-body.ts';
import { type FederationAnswer, type FederationClient, type FederationRequest, path } from './client.ts';
import { FederationError } from './federation-error.ts';
import type { GuardedFetch } from './guarded-fetch.ts';
import { boundaryOf, multipartParts } from './multipart.ts';

/** Media of another server as it comes in. */
export interface RemoteMediaAnswer {
  contentType: string | undefined;
  contentDisposition: string | undefined;
  body: AsyncIterable<Uint8Array>;
}

export interface RemoteMediaRequest {
  serverName: string;
  mediaId: string;
  /** Reading `body` beyond it throws `BodyTooLargeError`. */
  maxBytes: number;
  timeoutMs: number;
  /** Asks for a thumbnail in place of the content itself. */
  thumbnail?: { width: number; height: number; method: 'crop' | 'scale'; animated?: boolean };
}

/** How long the other side may wait for an upload that is under way. */
const UPLOAD_WAIT = 20_000;

/**
 * Media of another server, by the authenticated endpoint and, where the server does not know it, by the old one.
 * https://spec.matrix.org/v1.18/server-server-api/#content-repository
 */
export class RemoteMediaClient {
  readonly #client: FederationClient;
  readonly #fetch: GuardedFetch;

  /** @param fetch for media that its server redirects to another place */
  constructor(client: FederationClient, fetch: GuardedFetch) {
    this.#client = client;
    this.#fetch = fetch;
  }

  /** Gives the answer to `read` while it comes in; what `read` leaves is thrown away. */
  async get<T>(request: RemoteMediaRequest, read: (answer: RemoteMediaAnswer) => Promise<T>): Promise<T> {
    const kind = request.thumbnail ? 'thumbnail' : 'download';
    const common = {
      method: 'GET',
      destination: request.serverName,
      timeoutMs: request.timeoutMs,
      ignoreBackoff: true,
    } satisfies Partial<FederationRequest>;
    const query = { timeout_ms: UPLOAD_WAIT, ...request.thumbnail };
    try {
      return await this.#client.stream(
        { ...common, path: path`/_matrix/federation/v1/media/${kind}/${request.mediaId}`, query },
        (answer) => this.#readMultipart(request, answer, read),
      );
    } catch (error) {
      if (!(error instanceof FederationError && lacksEndpoint(error))) throw error;
    }
    return this.#client.stream(
      {
        ...common,
        path: path`/_matrix/media/v3/${kind}/${request.serverName}/${request.mediaId}`,
        // It must not ask us in turn.
        query: { ...query, allow_remote: false },
        unsigned: true,
      },
      (answer) =>
        read({
          contentType: headerOf(answer.headers, 'content-type'),
          contentDisposition: headerOf(answer.headers, 'content-disposition'),
          body: boundedBody(answer.body, request.maxBytes),
        }),
    );
  }

  /** Two parts: metadata in JSON, then the media or where it is. */
  async #readMultipart<T>(
    request: RemoteMediaRequest,
    answer: FederationAnswer,
    read: (answer: RemoteMediaAnswer) => Promise<T>,
  ): Promise<T> {
    const { serverName, maxBytes } = request;
    const boundary = boundaryOf(headerOf(answer.headers, 'content-type') ?? '');
    if (boundary === undefined)
      throw new FederationError(serverName, 'invalid', 'the answer is not multipart/mixed');
    // The bound holds for the media; the envelope around it is small.
    const bytes = boundedBody(answer.body, maxBytes + 64 * 1024);
    let index = 0;
    for await (const part of multipartParts(bytes, boundary)) {
      if (index++ === 0) continue;
      const location = part.headers.get('location');
      if (location !== undefined) return this.#follow(request, location, read);
      return read({
        contentType: part.headers.get('content-type'),
        contentDisposition: part.headers.get('content-disposition'),
        body: part.body,
      });
    }
    throw new FederationError(serverName, 'invalid', 'the answer has no second part');
  }

  async #follow<T>(
    { serverName, maxBytes, timeoutMs }: RemoteMediaRequest,
    location: string,
    read: (answer: RemoteMediaAnswer) => Promise<T>,
  ): Promise<T> {
    const response = await this.#fetch(location, { maxBytes, timeoutMs, maxRedirects: 3, httpsOnly: true });
    try {
      if (response.status !== 200)
        throw new FederationError(serverName, 'invalid', `the media's place answered ${response.status}`);
      return await read({
        contentType: headerOf(response.headers, 'content-type'),
        contentDisposition: headerOf(response.headers, 'content-disposition'),
        body: response.body,
      });
    } finally {
      response.discard();
    }
  }
}

/** Servers from before v1.11 answer this in many ways; none has a Matrix error code of its own. */
function lacksEndpoint(error: FederationError): boolean {
  if (error.isUnknownEndpoint) return true;
  return error.kind === 'http' && error.errcode === undefined && error.status! >= 400 && error.status! < 500;
}
