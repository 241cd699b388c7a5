import { Buffer } from 'node:buffer';
import { type Argon2Parameters, argon2, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { decodeBase64, encodeBase64 } from '@trellis/protocol/base64.ts';
import { invalidParam, MatrixError } from '@trellis/protocol/errors.ts';

const MAX_PASSWORD_BYTES = 512;
const TAG_BYTES = 32;
/** Beyond these a stored hash is taken for damaged and not for a wish to spend so much. */
const MAX_MEMORY_KIB = 4 * 1024 * 1024;
const MAX_PASSES = 1000;

/** A server-side secret that goes into every hash, so that a stolen database alone gives no password away. */
export interface Pepper {
  /** Stored with each hash, so that a pepper can be replaced while hashes with the old one live on. */
  readonly id: string;
  readonly secret: string;
}

export interface PasswordConfig {
  /** The first makes new hashes; all are used to check old ones. */
  readonly peppers?: readonly Pepper[];
  /** argon2id; the defaults are OWASP's first recommendation. */
  readonly memoryKib?: number;
  readonly passes?: number;
  readonly parallelism?: number;
  /** Hashes worked out at a time, each taking `memoryKib` and a thread. */
  readonly concurrency?: number;
  /** Requests waiting for that; more are answered M_LIMIT_EXCEEDED. */
  readonly maxWaiting?: number;
  /** In characters; shorter ones are answered M_WEAK_PASSWORD. */
  readonly minLength?: number;
}

interface Phc {
  readonly memory: number;
  readonly passes: number;
  readonly parallelism: number;
  readonly pepperId: string | undefined;
  readonly salt: Buffer;
  readonly tag: Buffer;
}

/** Makes and checks password hashes: argon2id over a peppered password, as PHC strings. */
export class Passwords {
  readonly #peppers: readonly Pepper[];
  readonly #memory: number;
  readonly #passes: number;
  readonly #parallelism: number;
  readonly #concurrency: number;
  readonly #maxWaiting: number;
  readonly #minLength: number;
  #running = 0;
  readonly #waiting: Array<() => void> = [];
  #decoy: Promise<string> | undefined;

  constructor(config: PasswordConfig = {}) {
    this.#peppers = config.peppers ?? [];
    this.#memory = config.memoryKib ?? 19_456;
    this.#passes = config.passes ?? 2;
    this.#parallelism = config.parallelism ?? 1;
    this.#concurrency = config.concurrency ?? 2;
    this.#maxWaiting = config.maxWaiting ?? 200;
    this.#minLength = config.minLength ?? 1;
  }

  /** @throws M_WEAK_PASSWORD, M_INVALID_PARAM for a password that an account may not have */
  checkNew(password: string): void {
    if (Buffer.byteLength(password) > MAX_PASSWORD_BYTES)
      throw invalidParam(`Passwords have at most ${MAX_PASSWORD_BYTES} bytes`);
    if ([...password].length < this.#minLength)
      throw new MatrixError(400, 'M_WEAK_PASSWORD', `Passwords have at least ${this.#minLength} characters`);
  }

  async hash(password: string): Promise<string> {
    const pepper = this.#peppers[0];
    const salt = randomBytes(16);
    const cost = { memory: this.#memory, passes: this.#passes, parallelism: this.#parallelism };
    const tag = await this.#derive(password, pepper, { ...cost, nonce: salt, tagLength: TAG_BYTES });
    const keyId = pepper ? `,keyid=${encodeBase64(Buffer.from(pepper.id))}` : '';
    const params = `m=${cost.memory},t=${cost.passes},p=${cost.parallelism}${keyId}`;
    return `$argon2id$v=19$${params}$${encodeBase64(salt)}$${encodeBase64(tag)}`;
  }

  /** Takes as long without a hash as with one, so that the time does not tell whether an account exists. */
  async verify(password: string, stored: string | undefined): Promise<boolean> {
    if (Buffer.byteLength(password) > MAX_PASSWORD_BYTES) return false;
    this.#decoy ??= this.hash(randomBytes(16).toString('hex'));
    const parsed = parsePhc(stored ?? (await this.#decoy));
    if (!parsed) return false;
    const pepper = this.#peppers.find(({ id }) => id === parsed.pepperId);
    if (parsed.pepperId !== undefined && !pepper) return false;
    const { memory, passes, parallelism, salt, tag } = parsed;
    const params = { memory, passes, parallelism, nonce: salt, tagLength: tag.length };
    const derived = await this.#derive(password, pepper, params);
    return timingSafeEqual(derived, tag) && stored !== undefined;
  }

  /** Whether a hash was made with other settings than those of today. */
  isOutdated(stored: string): boolean {
    const parsed = parsePhc(stored);
    return (
      parsed?.memory !== this.#memory ||
      parsed.passes !== this.#passes ||
      parsed.parallelism !== this.#parallelism ||
      parsed.pepperId !== this.#peppers[0]?.id
    );
  }

  async #derive(
    password: string,
    pepper: Pepper | undefined,
    params: Omit<Argon2Parameters, 'message'>,
  ): Promise<Buffer> {
    // The same text typed on two keyboards may differ in its code points.
    const text = password.normalize('NFKC');
    const message = pepper ? createHmac('sha256', pepper.secret).update(text).digest() : Buffer.from(text);
    await this.#enter();
    try {
      return await new Promise((resolve, reject) => {
        argon2('argon2id', { ...params, message }, (error, tag) => (error ? reject(error) : resolve(tag)));
      });
    } finally {
      this.#leave();
    }
  }

  async #enter(): Promise<void> {
    if (this.#running < this.#concurrency) {
      this.#running++;
      return;
    }
    if (this.#waiting.length >= this.#maxWaiting)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too many log-ins at a time', { retry_after_ms: 2000 });
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Hands the place to the one that waits longest. */
  #leave(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#running--;
  }
}

/** https://github.com/P-H-C/phc-string-format; `keyid` names the pepper. */
function parsePhc(text: string): Phc | undefined {
  const match =
    /^\$argon2id\$v=19\$m=(\d{1,10}),t=(\d{1,10}),p=(\d{1,3})(?:,keyid=([A-Za-z0-9+/]+))?\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)$/.exec(
      text,
    );
  if (!match) return undefined;
  const [, m, t, p, keyId] = match;
  const salt = decodeBase64(match[5]!);
  const tag = decodeBase64(match[6]!);
  if (!salt || !tag || tag.length < 16 || Number(m) > MAX_MEMORY_KIB || Number(t) > MAX_PASSES)
    return undefined;
  return {
    memory: Number(m),
    passes: Number(t),
    parallelism: Number(p),
    pepperId: keyId === undefined ? undefined : decodeBase64(keyId)?.toString(),
    salt,
    tag,
  };
}
