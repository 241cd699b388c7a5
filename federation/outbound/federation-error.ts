import { MatrixError } from '@trellis/protocol/errors.ts';

/** Codes that say something about the request itself, so that a client may see them as its own server's answer. */
const PASSED_ON = new Set([400, 403, 404, 413]);

/** A request to another server did not succeed. */
export class FederationError extends Error {
  override readonly name = 'FederationError';
  readonly destination: string;
  /**
   * `backoff`: not tried, the server was unreachable lately; `unreachable`: no answer; `timeout`: none in time;
   * `http`: the server answered with an error; `invalid`: its answer is not what the spec says.
   */
  readonly kind: 'backoff' | 'unreachable' | 'timeout' | 'http' | 'invalid';
  /** Of the server's answer, for kind `http`. */
  readonly status: number | undefined;
  readonly errcode: string | undefined;
  /** The body of an error answer, as far as it was a JSON object. */
  readonly body: Record<string, unknown>;

  constructor(
    destination: string,
    kind: FederationError['kind'],
    message: string,
    answer: { status?: number; body?: Record<string, unknown>; cause?: unknown } = {},
  ) {
    super(`${destination}: ${message}`, answer.cause === undefined ? undefined : { cause: answer.cause });
    this.destination = destination;
    this.kind = kind;
    this.status = answer.status;
    this.body = answer.body ?? {};
    this.errcode = typeof this.body.errcode === 'string' ? this.body.errcode : undefined;
  }

  /** The server does not know the endpoint, so an older one may be tried. */
  get isUnknownEndpoint(): boolean {
    if (this.kind !== 'http') return false;
    if (this.errcode === 'M_UNRECOGNIZED')
      return this.status === 400 || this.status === 404 || this.status === 405;
    return this.errcode === undefined && (this.status === 404 || this.status === 405);
  }

  /**
   * The error for a client on whose behalf the request was made. Codes about authentication are not passed on:
   * the client would take them for its own session's.
   */
  toMatrixError(): MatrixError {
    if (this.kind === 'http' && this.errcode !== undefined && PASSED_ON.has(this.status!)) {
      const { errcode, error, ...extra } = this.body;
      return new MatrixError(
        this.status!,
        this.errcode,
        typeof error === 'string' ? error : this.message,
        extra,
      );
    }
    if (this.kind === 'timeout')
      return new MatrixError(504, 'M_UNKNOWN', `${this.destination} did not answer in time`);
    return new MatrixError(502, 'M_UNKNOWN', `Could not get an answer from ${this.destination}`);
  }
}
