import { Worker } from 'node:worker_threads';
import { verifyKey, verifySignatureAsync } from '@trellis/protocol/signing.ts';

/** That a text bears a signature by a public key, both in Base64. */
export type Claim = readonly [publicKey: string, text: string, signature: string];

/** What the thread is given; it answers with `id` and `verdicts`. */
export interface VerificationRequest {
  readonly id: number;
  readonly claims: readonly Claim[];
}

interface Verdicts {
  readonly id: number;
  readonly verdicts: boolean[];
}

/** From so many on the thread is worth its while: each message costs a wake-up or two. */
const WORTH_A_MESSAGE = 4;
/** Fewer do not start it: that takes much longer than verifying them. */
const WORTH_A_THREAD = 16;
/** Claims in a message: others' come between. */
const AT_A_TIME = 64;
/** An idle thread gives its memory back, in milliseconds. */
const IDLE = 30_000;
const HEAP_MB = 64;

/**
 * Verifies many signatures off the event loop in one thread of its own: handing each to the thread pool of Node costs
 * nearly as much as verifying it. The thread is started when it is needed first; what comes before it has is not kept
 * waiting for it.
 */
export class Signatures {
  readonly #open = new Map<number, { claims: readonly Claim[]; resolve(verdicts: boolean[]): void }>();
  #worker: Worker | undefined;
  #isReady = false;
  #idle: NodeJS.Timeout | undefined;
  #lastId = 0;
  readonly #restAfter: number;

  constructor({ idle = IDLE }: { idle?: number } = {}) {
    this.#restAfter = idle;
  }

  /** @returns for each claim whether it is true */
  async verify(claims: readonly Claim[]): Promise<boolean[]> {
    if (claims.length < (this.#worker ? WORTH_A_MESSAGE : WORTH_A_THREAD)) return verifyHere(claims);
    const verdicts: Array<Promise<boolean[]>> = [];
    this.#wake();
    for (let i = 0; i < claims.length; i += AT_A_TIME) {
      const some = claims.slice(i, i + AT_A_TIME);
      verdicts.push(this.#isReady || i > 0 ? this.#ask(some) : verifyHere(some));
    }
    return (await Promise.all(verdicts)).flat();
  }

  #ask(claims: readonly Claim[]): Promise<boolean[]> {
    const { promise, resolve } = Promise.withResolvers<boolean[]>();
    const id = ++this.#lastId;
    this.#open.set(id, { claims, resolve });
    const worker = this.#wake();
    worker.ref();
    worker.postMessage({ id, claims } satisfies VerificationRequest);
    return promise;
  }

  #wake(): Worker {
    clearTimeout(this.#idle);
    this.#worker ??= this.#start();
    return this.#worker;
  }

  #start(): Worker {
    this.#isReady = false;
    const worker = new Worker(new URL('./signature-worker.ts', import.meta.url), {
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
    });
    // Nothing has been handed to it yet.
    worker.unref();
    worker.once('message', () => this.#ready(worker));
    worker.on('error', () => {});
    worker.once('exit', () => this.#gone(worker));
    return worker;
  }

  #ready(worker: Worker): void {
    worker.on('message', ({ id, verdicts }: Verdicts) => this.#answer(id, verdicts));
    if (this.#worker !== worker) return;
    this.#isReady = true;
    if (this.#open.size === 0) this.#beIdle();
  }

  #answer(id: number, verdicts: boolean[]): void {
    this.#open.get(id)?.resolve(verdicts);
    this.#open.delete(id);
    if (this.#open.size === 0) this.#beIdle();
  }

  #beIdle(): void {
    // It does not keep the process from ending.
    this.#worker?.unref();
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.#rest(), this.#restAfter).unref();
  }

  #rest(): void {
    const worker = this.#worker;
    this.#worker = undefined;
    void worker?.terminate();
  }

  /** What it has not answered is done without it. */
  #gone(worker: Worker): void {
    if (this.#worker !== worker) return;
    this.#worker = undefined;
    const open = [...this.#open.values()];
    this.#open.clear();
    for (const { claims, resolve } of open) void verifyHere(claims).then(resolve);
  }
}

function verifyHere(claims: readonly Claim[]): Promise<boolean[]> {
  return Promise.all(claims.map(verifyOne));
}

async function verifyOne([publicKey, text, signature]: Claim): Promise<boolean> {
  const key = verifyKey(publicKey);
  return key !== undefined && verifySignatureAsync(key, text, signature);
}
