/**
 * Errors with a `M_` code, as every Matrix API answers them.
 * https://spec.matrix.org/v1.18/client-server-api/#standard-error-response
 */
export class MatrixError extends Error {
  override readonly name = 'MatrixError';
  /** HTTP status of the answer. */
  readonly status: number;
  readonly errcode: string;
  /** Further members of the answer's body, such as `retry_after_ms`. */
  readonly extra: Record<string, unknown>;

  constructor(status: number, errcode: string, message: string, extra: Record<string, unknown> = {}) {
    super(message);
    this.status = status;
    this.errcode = errcode;
    this.extra = extra;
  }

  toBody(): Record<string, unknown> {
    return { ...this.extra, errcode: this.errcode, error: this.message };
  }
}

export const badJson = (message: string) => new MatrixError(400, 'M_BAD_JSON', message);
export const notJson = (message: string) => new MatrixError(400, 'M_NOT_JSON', message);
export const invalidParam = (message: string) => new MatrixError(400, 'M_INVALID_PARAM', message);
export const missingParam = (message: string) => new MatrixError(400, 'M_MISSING_PARAM', message);
export const forbidden = (message: string) => new MatrixError(403, 'M_FORBIDDEN', message);
export const notFound = (message: string) => new MatrixError(404, 'M_NOT_FOUND', message);
export const unrecognized = (status: 404 | 405, message: string) =>
  new MatrixError(status, 'M_UNRECOGNIZED', message);
export const tooLarge = (message: string) => new MatrixError(413, 'M_TOO_LARGE', message);
