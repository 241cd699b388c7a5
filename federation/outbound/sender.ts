import { randomBytes } from 'node:crypto';
import type { FederationClient } from './client.ts';
import type { Destination, OutgoingTransaction } from './destination.ts';
import { sendTransaction } from './event-calls.ts';
import { FederationError } from './federation-error.ts';
import { Lane } from './lane.ts';

export interface SenderDeps {
  readonly client: FederationClient;
  readonly log: { warn(details: object, message: string): void };
  /** Transactions in flight at a time. */
  readonly concurrency: number;
  /** Something older may be found yet that has to go first. */
  readonly isHeld: () => boolean;
  /** Nothing is under way for the destination now. */
  readonly onRest: (destination: Destination) => void;
}

const FIRST_REFUSAL_WAIT = 1_000;
const LONGEST_REFUSAL_WAIT = 3_600_000;
const AFTER_OWN_ERROR = 5_000;
const LONGEST_TIMER = 2 ** 31 - 1;

/** Sends what destinations have, one transaction at a time for each of them, and waits while they do not answer. */
export class Sender {
  readonly #deps: SenderDeps;
  /** Servers that failed lately are tried beside the others, so that waiting for them holds nobody up. */
  readonly #lanes: { readonly healthy: Lane; readonly failing: Lane };
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<void>>();
  readonly #sending = new Map<Destination, Promise<void>>();
  #started = false;
  /** Transaction ids are never used twice, by no process and over restarts neither. */
  readonly #epoch = `${Date.now().toString(36)}${randomBytes(4).toString('hex')}`;
  #count = 0;

  constructor(deps: SenderDeps) {
    this.#deps = deps;
    this.#lanes = {
      healthy: new Lane(deps.concurrency),
      failing: new Lane(Math.ceil(deps.concurrency / 4)),
    };
  }

  start(): void {
    this.#started = true;
  }

  /** Starts delivering to a destination, unless that is under way. */
  deliver(destination: Destination): void {
    if (destination.delivering || !this.#mayRun(destination)) return;
    if (destination.timer && this.#waitFor(destination) > 0) {
      destination.fallBehind();
      return;
    }
    clearTimeout(destination.timer);
    destination.timer = undefined;
    destination.delivering = true;
    const run = this.#run(destination).finally(() => {
      this.#running.delete(run);
      destination.delivering = false;
      // What came in while the run was ending has found it under way.
      if (destination.hasWork && !destination.timer && this.#mayRun(destination)) this.deliver(destination);
      else this.#deps.onRest(destination);
    });
    this.#running.add(run);
  }

  /** Ends deliveries, for others to go on with them: gives what is in flight some time to be answered. */
  async stop(destinations: readonly Destination[], waitMs: number): Promise<void> {
    const sending = destinations.flatMap((destination) => this.#sending.get(destination) ?? []);
    for (const destination of destinations) {
      destination.isStopped = true;
      clearTimeout(destination.timer);
      destination.timer = undefined;
    }
    const late = new Promise((wake) => setTimeout(wake, waitMs));
    if (sending.length > 0) await Promise.race([Promise.all(sending), late]);
    for (const destination of destinations) destination.stopping.abort();
    await Promise.all(sending);
  }

  /** Gives what is in flight some time to be answered. */
  async close(waitMs: number): Promise<void> {
    const late = new Promise((wake) => setTimeout(wake, waitMs).unref());
    this.#started = false;
    await Promise.race([Promise.all(this.#running), late]);
    this.#closing.abort();
    await Promise.all(this.#running);
  }

  async #run(destination: Destination): Promise<void> {
    // What is announced in the same turn goes together.
    await Promise.resolve();
    while (this.#mayRun(destination) && (destination.hasWork || destination.unanswered)) {
      const wait = this.#waitFor(destination);
      if (wait > 0) return this.#pause(destination, wait);
      const { healthy, failing } = this.#lanes;
      const lane = this.#deps.client.backoff.get(destination.name) ? failing : healthy;
      await lane.run(async () => {
        const sending = this.#sendNext(destination);
        this.#sending.set(destination, sending);
        await sending;
        this.#sending.delete(destination);
      });
    }
  }

  #mayRun(destination: Destination): boolean {
    return this.#started && !destination.isStopped && !this.#deps.isHeld();
  }

  #waitFor({ name, notBefore }: Destination): number {
    return Math.max(this.#deps.client.backoff.waitUntil(name) ?? 0, notBefore) - Date.now();
  }

  #pause(destination: Destination, wait: number): void {
    destination.fallBehind();
    destination.ephemeral.clear();
    destination.timer = setTimeout(
      () => {
        destination.timer = undefined;
        this.deliver(destination);
      },
      Math.min(wait, LONGEST_TIMER),
    ).unref();
  }

  async #sendNext(destination: Destination): Promise<void> {
    // The wait for the lane may have been long.
    if (!this.#mayRun(destination) || this.#waitFor(destination) > 0) return;
    const { unanswered } = destination;
    destination.unanswered = undefined;
    try {
      const transaction = unanswered?.transaction ?? (await destination.next());
      if (!transaction) return;
      const id = unanswered?.id ?? `${this.#epoch}-${(this.#count++).toString(36)}`;
      try {
        await this.#send(destination, id, transaction);
      } catch (error) {
        if (!(error instanceof FederationError)) throw error;
        await this.#failed(destination, transaction, unanswered ? undefined : id, error);
        return;
      }
      destination.taken();
      await transaction.delivered();
    } catch (err) {
      if (this.#closing.signal.aborted || destination.stopping.signal.aborted) return;
      this.#deps.log.warn({ err, destination: destination.name }, 'a transaction could not be made');
      destination.notBefore = Date.now() + AFTER_OWN_ERROR;
    }
  }

  async #send(
    { name, stopping }: Destination,
    id: string,
    { pdus, edus }: OutgoingTransaction,
  ): Promise<void> {
    const { client } = this.#deps;
    await sendTransaction(client, name, id, {
      originServerTs: Date.now(),
      pdus: pdus.map(({ pdu }) => pdu),
      edus: edus.map(({ edu_type, content }) => ({ edu_type, content })),
      signal: AbortSignal.any([this.#closing.signal, stopping.signal]),
    });
  }

  /** @param id of the transaction, when it may be sent once more as it is */
  async #failed(
    destination: Destination,
    transaction: OutgoingTransaction,
    id: string | undefined,
    error: FederationError,
  ): Promise<void> {
    const { client } = this.#deps;
    const { name } = destination;
    if (error.kind === 'backoff') return;
    // No answer to speak of: the client has noted it, and says when to try again.
    if (error.kind === 'unreachable' || error.kind === 'timeout' || (error.status ?? 0) >= 500) {
      const failing = client.backoff.get(name);
      if (id !== undefined && failing?.failures === 1) destination.unanswered = { id, transaction };
      // Not where it was not even tried, as with a server that is not allowed any more.
      if (client.backoff.waitUntil(name) !== undefined) return;
    }
    // Without a Matrix error it is not the server that answers, but something before it that is out of order.
    if ((error.status === 400 || error.status === 413) && error.errcode !== undefined) {
      const verdict = destination.refused(transaction.pdus.length + transaction.edus.length);
      if (verdict === 'smaller') return;
      if (verdict === 'out') {
        const events = transaction.pdus.map(({ eventId }) => eventId);
        this.#deps.log.warn({ destination: name, events, err: error }, 'refused by a server, left out');
        destination.taken();
        return transaction.delivered();
      }
    } else {
      destination.refusals++;
    }
    const asked = Number(error.body.retry_after_ms ?? 0);
    const wait = Math.max(
      FIRST_REFUSAL_WAIT * 1.5 ** Math.min(destination.refusals - 1, 50),
      Number.isFinite(asked) ? asked : 0,
    );
    destination.notBefore = Date.now() + Math.min(wait, LONGEST_REFUSAL_WAIT);
  }
}
