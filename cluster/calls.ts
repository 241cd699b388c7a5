import { MatrixError } from '@trellis/protocol/errors.ts';
import type { CallHandler, CallOptions, Duty, Json } from './cluster.ts';
import type { Call } from './messages.ts';

/** How long a call waits for somebody to have the duty, in milliseconds. */
const OWNER_LIMIT = 10_000;

export interface CallsDeps {
  readonly self: string;
  send(to: string, call: Call): void;
  owner(duty: Duty, key: string): string | undefined;
  /** Whether this process is about to give a duty up. */
  isLeaving(duty: Duty, key: string): boolean;
  /** Resolves when duties are shared anew, or stay after all. */
  nextView(): Promise<void>;
  /** Whether a process can still be reached. */
  isUp(member: string): boolean;
  report(error: unknown, method: string): void;
}

interface Pending {
  readonly to: string;
  readonly settled: PromiseWithResolvers<Json | undefined | typeof MOVED>;
}

const MOVED = Symbol('moved');

/** Work done by the process that has the duty for it. */
export class Calls {
  readonly #deps: CallsDeps;
  readonly #methods = new Map<string, { handler: CallHandler; drained: boolean }>();
  readonly #pending = new Map<number, Pending>();
  /** What runs here for others or for ourselves. */
  readonly #running = new Map<Promise<unknown>, { duty: Duty; key: string }>();
  #next = 0;

  constructor(deps: CallsDeps) {
    this.#deps = deps;
  }

  serve(method: string, handler: CallHandler, { drained = true }: CallOptions = {}): void {
    this.#methods.set(method, { handler, drained });
  }

  async call(duty: Duty, key: string, method: string, args: Json): Promise<Json | undefined> {
    const { self, owner, isLeaving, isUp, nextView } = this.#deps;
    for (const end = Date.now() + OWNER_LIMIT; ; ) {
      const to = owner(duty, key);
      if (to === self && !isLeaving(duty, key)) return this.#run(duty, key, method, args);
      if (to !== undefined && to !== self && isUp(to)) {
        const answer = await this.#ask(to, duty, key, method, args);
        if (answer !== MOVED) return answer;
      }
      if (Date.now() > end) throw unavailable('No process of the server has that to do now');
      await atMost(nextView(), 50);
    }
  }

  /** Calls that are under way here for what is to be given up. */
  async drain(lost: (duty: Duty, key: string) => boolean): Promise<void> {
    const waiting = [...this.#running].filter(([, { duty, key }]) => lost(duty, key)).map(([work]) => work);
    await Promise.allSettled(waiting);
  }

  handle(from: string, message: Call): void {
    if (message.t === 'call') return void this.#serve(from, message);
    const pending = this.#pending.get(message.n);
    if (!pending) return;
    this.#pending.delete(message.n);
    if (message.t === 'result') pending.settled.resolve(message.a);
    else if (message.t === 'moved') pending.settled.resolve(MOVED);
    else pending.settled.reject(errorOf(message));
  }

  /** A process does not answer any more. */
  down(member: string): void {
    for (const [n, { to, settled }] of this.#pending)
      if (to === member) {
        this.#pending.delete(n);
        settled.reject(unavailable('The process that was at it is gone: try again'));
      }
  }

  #ask(to: string, duty: Duty, key: string, method: string, args: Json) {
    const n = ++this.#next;
    const settled = Promise.withResolvers<Json | undefined | typeof MOVED>();
    this.#pending.set(n, { to, settled });
    this.#deps.send(to, { t: 'call', n, d: duty, k: key, m: method, a: args });
    return settled.promise;
  }

  async #serve(from: string, { n, d, k, m, a }: Extract<Call, { t: 'call' }>): Promise<void> {
    const { self, owner, isLeaving, nextView, send, report } = this.#deps;
    const duty = d as Duty;
    // What is being given up is not begun any more; the caller may know the new view later than we do.
    while (owner(duty, k) === self && isLeaving(duty, k)) await nextView();
    if (owner(duty, k) !== self) return send(from, { t: 'moved', n });
    try {
      send(from, { t: 'result', n, a: await this.#run(duty, k, m, a) } as Call);
    } catch (error) {
      if (!asMatrixError(error)) report(error, m);
      send(from, toError(n, error));
    }
  }

  #run(duty: Duty, key: string, method: string, args: Json): Promise<Json | undefined> {
    const known = this.#methods.get(method);
    if (!known) return Promise.reject(new Error(`nobody serves ${method}`));
    const work = Promise.resolve().then(() => known.handler(args as never, key));
    if (known.drained) {
      this.#running.set(work, { duty, key });
      const ended = () => this.#running.delete(work);
      work.then(ended, ended);
    }
    return work;
  }
}

export function unavailable(words: string): MatrixError {
  return new MatrixError(503, 'M_UNKNOWN', words);
}

function toError(n: number, failure: unknown): Call {
  const error = asMatrixError(failure);
  if (!error) return { t: 'error', n, status: 500, errcode: 'M_UNKNOWN', message: 'Internal server error' };
  const { status, errcode, message, extra } = error;
  return { t: 'error', n, status, errcode, message, extra: extra as Json };
}

/** What clients are told of an error, where it is one for them. */
function asMatrixError(error: unknown): MatrixError | undefined {
  if (error instanceof MatrixError) return error;
  const { toMatrixError, code } = error as { toMatrixError?: () => MatrixError; code?: unknown };
  if (toMatrixError) return toMatrixError.call(error);
  // PostgreSQL's text holds no U+0000, so that nothing it is asked for can be there.
  if (code === '22021') return new MatrixError(400, 'M_INVALID_PARAM', 'A parameter holds U+0000');
  return undefined;
}

function errorOf({ status, errcode, message, extra }: Extract<Call, { t: 'error' }>): MatrixError {
  return new MatrixError(status, errcode, message, extra as Record<string, unknown> | undefined);
}

function atMost(promise: Promise<void>, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    void promise.then(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
