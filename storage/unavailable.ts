import { MatrixError } from '@trellis/protocol/errors.ts';

/**
 * Something could not be done for now and for no fault of who asked: to be tried again. No `MatrixError`, since those
 * say something of the request, and some are taken for a refusal.
 */
export class UnavailableError extends Error {
  /** When trying again may help, in milliseconds. */
  readonly retryAfterMs: number;

  constructor(message: string, cause?: unknown, retryAfterMs = 1000) {
    super(message, { cause });
    this.name = new.target.name;
    this.retryAfterMs = retryAfterMs;
  }

  toMatrixError(): MatrixError {
    return new MatrixError(503, 'M_UNKNOWN', this.message, { retry_after_ms: this.retryAfterMs });
  }
}

/** The database cannot be reached, is starting, or is no primary. */
export class DatabaseAwayError extends UnavailableError {
  /** The connection was lost while something was to be stored: it may be stored, or may yet come to be. */
  readonly inDoubt: boolean;
  /** Process id of the backend that was at it, as far as known. */
  readonly backend: number | undefined;

  constructor(cause: unknown, inDoubt = false, backend?: number) {
    super('The database cannot be reached at the moment', cause);
    this.inDoubt = inDoubt;
    this.backend = backend;
  }
}

const NETWORK = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'ENOTFOUND',
  'EAI_AGAIN',
  // No socket of that name.
  'ENOENT',
]);

/** Of the driver, which gives them no code. */
const DRIVER =
  /^(Connection terminated|timeout expired|Client has encountered a connection error|Client was closed|Connection is closed|.*connection timeout)/i;

/**
 * Whether an error says that the connection to the server is gone, or that the server takes nothing: classes and
 * codes of https://www.postgresql.org/docs/current/errcodes-appendix.html.
 */
export function saysAway(error: unknown): boolean {
  const { code, message, severity } = error as { code?: unknown; message?: unknown; severity?: unknown };
  if (typeof code !== 'string') return DRIVER.test(String(message));
  if (NETWORK.has(code)) return true;
  // A breach of protocol in a live session is a mistake here; pgbouncer ends sessions with it.
  if (code === '08P01') return severity !== 'ERROR';
  switch (code) {
    case '57P01': // admin_shutdown
    case '57P02': // crash_shutdown
    case '57P03': // cannot_connect_now: starting up, shutting down
    case '57P05': // idle_session_timeout
    case '25P03': // idle_in_transaction_session_timeout
    case '53300': // too_many_connections
    case '25006': // read_only_sql_transaction: the server is a standby by now
      return true;
  }
  return code.startsWith('08');
}
