import { setImmediate } from 'node:timers/promises';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { AppserviceClient } from './client.ts';
import { type DeliveryStore, type Positions, type StoredDelivery, TakenOverError } from './delivery-store.ts';
import { eventsJson } from './event-json.ts';
import type { Appservice } from './registry.ts';
import type { Transaction, Transactions } from './transactions.ts';

export interface DeliveryParts {
  readonly client: AppserviceClient;
  readonly store: DeliveryStore;
  readonly transactions: Transactions;
  readonly strippedState: Memberships['strippedState'];
  /** The device has its messages up to a position. */
  readonly received: (userId: string, deviceId: string, position: number) => Promise<void>;
  /** The service does not answer. */
  readonly onFailure: () => void;
  /** It answers again. */
  readonly onRecovery: () => void;
  /** Another process delivers to it. */
  readonly onTakenOver: () => void;
  readonly log: {
    warn(details: object, message: string): void;
    info(details: object, message: string): void;
  };
}

/** A service that thinks longer than this about a transaction gets it again, in milliseconds. */
const ANSWER_TIMEOUT_MS = 60_000;
/** Milliseconds until a failed transaction is tried again: doubled each time. */
const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 300_000;
/** Milliseconds between tries, at the least, of a service that shows itself alive. */
const MIN_RETRY_MS = 5_000;
/** Positions that are passed over, for want of anything to tell, before that is written down. */
const UNSAVED_POSITIONS = 5_000;

/**
 * Tells one application service of everything in order, one transaction at a time ("Pushing events").
 *
 * 1. What comes next after the positions is put together; if there is nothing, it waits to be woken.
 * 2. The transaction is written down, with the positions that it leads to: by this alone it is the same when it is
 *    tried again, by this process or the next.
 * 3. It is sent until it is answered with 200.
 * 4. That is written down: with the next transaction, or by itself when there is none.
 */
export class Delivery {
  readonly service: Appservice;
  readonly #parts: DeliveryParts;
  #positions: Positions;
  #current: Transaction | undefined;
  /** The transaction that is written down is delivered. */
  #done = false;
  #savedEvents: number;
  #failures = 0;
  #lastTry = 0;
  #woken = false;
  #isPrepared = false;
  #isStarted = false;
  #stopped = false;
  readonly #aborting = new AbortController();
  #wake: (() => void) | undefined;
  #retry: (() => void) | undefined;
  #running: Promise<void> = Promise.resolve();

  constructor(service: Appservice, parts: DeliveryParts, now: Positions) {
    this.service = service;
    this.#parts = parts;
    this.#positions = now;
    this.#savedEvents = -1;
  }

  get isFailing(): boolean {
    return this.#failures > 0;
  }

  /** @param stored where others, or the last run of the server, have left off */
  async prepare({ positions, transaction }: StoredDelivery): Promise<void> {
    this.#positions = positions;
    this.#savedEvents = positions.events;
    if (transaction) this.#current = await this.#parts.transactions.restore(transaction, positions);
    this.#isPrepared = true;
  }

  /** Begins, if it knows where, and has not begun. */
  start(): void {
    if (!this.#isPrepared || this.#isStarted || this.#stopped) return;
    this.#isStarted = true;
    this.#running = this.#run();
  }

  /** There may be something to tell. */
  wake(): void {
    this.#woken = true;
    this.#wake?.();
  }

  /** The service is there: if it did not answer before, it may now. */
  seenAlive(now = false): void {
    if (this.#retry && (now || Date.now() - this.#lastTry >= MIN_RETRY_MS)) this.#retry();
  }

  /** @param waitMs how long what is under way may take to be answered */
  async close(waitMs: number): Promise<void> {
    this.#stopped = true;
    this.wake();
    this.#retry?.();
    const timer = setTimeout(() => this.#aborting.abort(), waitMs);
    await this.#running;
    clearTimeout(timer);
    if (!this.#done && this.#positions.events <= this.#savedEvents) return;
    await this.#save(this.#current).catch((error) => {
      if (!(error instanceof TakenOverError)) throw error;
    });
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      try {
        this.#current ??= await this.#next();
        if (this.#current) await this.#deliver(this.#current);
        else await this.#sleep();
        this.#failures = 0;
      } catch (err) {
        if (this.#stopped) return;
        if (err instanceof TakenOverError) {
          this.#stopped = true;
          this.#parts.onTakenOver();
          return;
        }
        await this.#backOff(err as Error);
      }
    }
  }

  async #next(): Promise<Transaction | undefined> {
    this.#woken = false;
    const next = await this.#parts.transactions.next(this.#positions);
    if ('id' in next) {
      await this.#save(next);
      return next;
    }
    this.#positions = next;
    if (this.#done || next.events - this.#savedEvents > UNSAVED_POSITIONS) await this.#save();
    return undefined;
  }

  async #deliver(transaction: Transaction): Promise<void> {
    const { client, strippedState, received, log } = this.#parts;
    const { id, events, more, messages, positions, delivered } = transaction;
    this.#lastTry = Date.now();
    const rest = JSON.stringify(more).slice(1);
    const answer = await client.request(this.service, {
      method: 'PUT',
      paths: [`/_matrix/app/v1/transactions/${id}`, `/transactions/${id}`],
      body: `{"events":${await eventsJson(events, { strippedState })}${rest === '}' ? '' : ','}${rest}`,
      timeoutMs: ANSWER_TIMEOUT_MS,
      signal: this.#aborting.signal,
    });
    if (answer.status !== 200) throw new Error(`a transaction was answered with status ${answer.status}`);
    if (this.#failures > 0) {
      log.info({ appservice: this.service.id }, 'application service answers again');
      this.#parts.onRecovery();
    }
    delivered();
    this.#current = undefined;
    this.#positions = positions;
    this.#done = true;
    // Others may still read what is for a user whom the service only shares ("when to delete", MSC4203).
    const own = messages.filter(({ to_user_id: userId }) => this.service.owns(userId));
    const devices = new Map(own.map((to) => [JSON.stringify([to.to_user_id, to.to_device_id]), to]));
    for (const { to_user_id: userId, to_device_id: deviceId } of devices.values())
      await received(userId, deviceId, positions.toDevice);
  }

  async #save(transaction?: Transaction): Promise<void> {
    await this.#parts.store.save(
      this.service.id,
      transaction?.positions ?? this.#positions,
      transaction && {
        id: transaction.id,
        eventNids: transaction.events.map(({ nid }) => nid),
        more: JSON.stringify(transaction.more),
      },
    );
    this.#done = false;
    this.#savedEvents = (transaction?.positions ?? this.#positions).events;
  }

  async #sleep(): Promise<void> {
    if (!this.#woken && !this.#stopped)
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    this.#wake = undefined;
    // What is announced together goes together.
    await setImmediate();
  }

  async #backOff(err: Error): Promise<void> {
    const { log, onFailure } = this.#parts;
    const delay = Math.min(FIRST_RETRY_MS * 2 ** this.#failures, MAX_RETRY_MS);
    this.#failures++;
    onFailure();
    log.warn(
      { err, appservice: this.service.id, failures: this.#failures, retry_ms: delay },
      'application service cannot be told of events',
    );
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((retry) => {
      this.#retry = retry;
      timer = setTimeout(retry, delay * (0.8 + Math.random() * 0.4)).unref();
    });
    clearTimeout(timer);
    this.#retry = undefined;
  }
}
