import type { Buffer } from 'node:buffer';
import { randomInt, timingSafeEqual } from 'node:crypto';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Accounts } from './accounts.ts';
import { hashBytes, newSecret, randomLetters, secretHash } from './secret-tokens.ts';
import { SharedBuckets } from './shared-buckets.ts';
import type { Medium, Threepid } from './threepid-address.ts';
import type { Rate } from './token-buckets.ts';

/** What an address is confirmed for: a new account, one's own account, a new password. */
export type Purpose = 'register' | 'add' | 'password';

/**
 * What is sent to an address. It is told there, and not to whoever asks, that it has an account already (`in-use`) or
 * that it has none (`unknown`).
 */
export type Verification = { readonly address: string; readonly purpose: Purpose } & (
  | { readonly kind: 'confirm'; readonly sid: string; readonly clientSecret: string; readonly token: string }
  | { readonly kind: 'in-use' | 'unknown' }
);

/** Sends to addresses of one medium. */
export type SendVerification = (verification: Verification) => Promise<void>;

export interface ThreepidSessionsDeps {
  readonly db: Queryable;
  readonly accounts: Pick<Accounts, 'findByThreepid'>;
  /** Left out: addresses of that medium cannot be confirmed. */
  readonly senders: { readonly [medium in Medium]?: SendVerification | undefined };
  /** For one address. */
  readonly rate: Rate;
  readonly lifetimeMs?: number;
  readonly onSendError?: (error: unknown, medium: Medium) => void;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

export interface VerificationRequest extends Threepid {
  readonly purpose: Purpose;
  readonly clientSecret: string;
  readonly sendAttempt: number;
  readonly nextLink: string | undefined;
}

export interface ValidatedThreepid extends Threepid {
  readonly sid: string;
  readonly validatedTs: number;
}

interface Session {
  readonly sid: string;
  readonly sendAttempt: number;
}

/** Codes of six digits can be guessed, so that only a few guesses are allowed. */
const MAX_TRIES = 5;

/**
 * Sessions in which people confirm that an address is theirs, by a link in a mail or a code in a text message (spec:
 * "Adding Account Administrative Contact Information"; identity service API, "Establishing associations").
 */
export class ThreepidSessions {
  readonly #deps: ThreepidSessionsDeps;
  readonly #lifetimeMs: number;
  readonly #rates: SharedBuckets;

  constructor(deps: ThreepidSessionsDeps) {
    this.#deps = deps;
    this.#lifetimeMs = deps.lifetimeMs ?? 3_600_000;
    this.#rates = new SharedBuckets(deps.rate, 'threepids', deps.cluster);
  }

  supports(medium: Medium): boolean {
    return this.#deps.senders[medium] !== undefined;
  }

  /**
   * Begins a session, or goes on with that of the same address and secret, and sends what is to be sent unless that
   * attempt has been made. The answer is the same whether the address belongs to an account or not.
   *
   * @returns the id of the session
   * @throws M_LIMIT_EXCEEDED
   */
  async request(request: VerificationRequest): Promise<string> {
    const { medium, address, sendAttempt } = request;
    const before = await this.#find(request);
    if (before && before.sendAttempt >= sendAttempt) return before.sid;
    const wait = await this.#rates.take(`${medium} ${address}`);
    if (wait > 0)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too much was sent there', { retry_after_ms: wait });
    const verification = await this.#verificationFor(request);
    const token = verification === 'confirm' ? newToken(medium) : undefined;
    const sid = await this.#store(request, token);
    await this.#send(request, sid, verification, token);
    return sid;
  }

  /**
   * Confirms the address of a session by what was sent there.
   *
   * @returns where to go from there, if somewhere
   * @throws M_TOKEN_INCORRECT, M_SESSION_EXPIRED
   */
  async submit(sid: string, clientSecret: string, token: string): Promise<string | undefined> {
    const { db } = this.#deps;
    const now = Date.now();
    // Counted before it is compared: guesses at the same time do not get more than their number.
    const [row] = await db.query<{ tokenHash: Buffer | null; tries: number; nextLink: string | null }>(
      `UPDATE threepid_sessions SET tries = tries + 1
       WHERE sid = $1 AND client_secret_hash = $2 AND expires_ts > $3
       RETURNING token_hash AS "tokenHash", tries, next_link AS "nextLink"`,
      [sid.replaceAll('\0', ''), hashBytes(secretHash(clientSecret)), now],
    );
    if (!row) throw new MatrixError(400, 'M_SESSION_EXPIRED', 'There is no such session any more');
    const given = hashBytes(secretHash(token.trim()));
    if (row.tries > MAX_TRIES || !row.tokenHash || !timingSafeEqual(row.tokenHash, given))
      throw new MatrixError(400, 'M_TOKEN_INCORRECT', 'The token is not the one that was sent');
    await db.query(
      `UPDATE threepid_sessions SET validated_ts = coalesce(validated_ts, $2), expires_ts = $3, tries = 0
       WHERE sid = $1`,
      [sid, now, now + this.#lifetimeMs],
    );
    return row.nextLink ?? undefined;
  }

  /** The address that a session has confirmed, if it has, and if it was for that purpose. */
  async validated(
    medium: Medium,
    purpose: Purpose,
    sid: unknown,
    clientSecret: unknown,
  ): Promise<ValidatedThreepid | undefined> {
    const found = await this.validatedAny(purpose, sid, clientSecret);
    return found?.medium === medium ? found : undefined;
  }

  async validatedAny(
    purpose: Purpose,
    sid: unknown,
    clientSecret: unknown,
  ): Promise<ValidatedThreepid | undefined> {
    if (typeof sid !== 'string' || typeof clientSecret !== 'string') return undefined;
    const [row] = await this.#deps.db.query<ValidatedThreepid>(
      `SELECT sid, medium, address, validated_ts AS "validatedTs" FROM threepid_sessions
       WHERE sid = $1 AND client_secret_hash = $2 AND purpose = $3 AND validated_ts IS NOT NULL AND expires_ts > $4`,
      [sid.replaceAll('\0', ''), hashBytes(secretHash(clientSecret)), purpose, Date.now()],
    );
    return row;
  }

  /** What it was for is done. */
  async end(sid: string): Promise<void> {
    await this.#deps.db.query('DELETE FROM threepid_sessions WHERE sid = $1', [sid]);
  }

  async #verificationFor({ medium, address, purpose }: VerificationRequest): Promise<Verification['kind']> {
    const owner = await this.#deps.accounts.findByThreepid(medium, address);
    if (purpose === 'password') return owner ? 'confirm' : 'unknown';
    return owner ? 'in-use' : 'confirm';
  }

  async #find({ medium, address, clientSecret, purpose }: VerificationRequest): Promise<Session | undefined> {
    const [row] = await this.#deps.db.query<Session>(
      `SELECT sid, send_attempt AS "sendAttempt" FROM threepid_sessions
       WHERE medium = $1 AND address = $2 AND client_secret_hash = $3 AND purpose = $4 AND expires_ts > $5`,
      [medium, address, hashBytes(secretHash(clientSecret)), purpose, Date.now()],
    );
    return row;
  }

  async #store(request: VerificationRequest, token: string | undefined): Promise<string> {
    const { medium, address, clientSecret, purpose, sendAttempt, nextLink } = request;
    const [row] = await this.#deps.db.query<{ sid: string }>(
      `INSERT INTO threepid_sessions (sid, medium, address, client_secret_hash, purpose, send_attempt, token_hash,
                                      next_link, expires_ts)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
       ON CONFLICT (medium, address, client_secret_hash, purpose) DO UPDATE SET send_attempt = EXCLUDED.send_attempt,
         token_hash = EXCLUDED.token_hash, tries = 0, next_link = EXCLUDED.next_link,
         validated_ts = CASE WHEN threepid_sessions.expires_ts > $10 THEN threepid_sessions.validated_ts END,
         expires_ts = EXCLUDED.expires_ts
       RETURNING sid`,
      [
        randomLetters(24),
        medium,
        address,
        hashBytes(secretHash(clientSecret)),
        purpose,
        sendAttempt,
        token === undefined ? null : hashBytes(secretHash(token)),
        nextLink ?? null,
        Date.now() + this.#lifetimeMs,
        Date.now(),
      ],
    );
    return row!.sid;
  }

  async #send(
    { medium, address, purpose, clientSecret }: VerificationRequest,
    sid: string,
    kind: Verification['kind'],
    token: string | undefined,
  ): Promise<void> {
    try {
      await this.#deps.senders[medium]!(
        kind === 'confirm'
          ? { kind, address, purpose, sid, clientSecret, token: token! }
          : { kind, address, purpose },
      );
    } catch (error) {
      this.#deps.onSendError?.(error, medium);
      // The attempt counts as not made, so that the client's next request sends.
      await this.#deps.db.query('UPDATE threepid_sessions SET send_attempt = -1 WHERE sid = $1', [sid]);
      throw new MatrixError(502, 'M_UNKNOWN', 'The message could not be sent; try again later');
    }
  }
}

function newToken(medium: Medium): string {
  return medium === 'email' ? newSecret('tvt') : String(randomInt(1_000_000)).padStart(6, '0');
}
