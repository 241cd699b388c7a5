import { hash, randomBytes } from 'node:crypto';
import { forbidden, invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { DelayedEvent, DelayedEventStore } from '@trellis/storage/delayed-events.ts';
import { Lock } from './lock.ts';
import type { Membership } from './membership.ts';
import { checkRelation } from './relation-rules.ts';
import { mayRedact } from './room-rights.ts';
import type { Rooms } from './rooms.ts';
import { appendDraft, buildDraft, type Draft } from './send.ts';
import { checkState } from './state-rules.ts';

export interface DelayedEventsParts {
  readonly rooms: Rooms;
  readonly membership: Pick<Membership, 'set'>;
  readonly store: DelayedEventStore;
  /** Whether the user may still do anything. */
  readonly mayAct: (userId: string) => Promise<boolean>;
  /** Milliseconds that an event may be delayed at the most; 0: nothing may. */
  readonly maxDelay: number;
  /** Events that a user may have scheduled at a time. */
  readonly maxScheduled: number;
  /** Told of events that could not be sent, for the log. */
  readonly onFailure: (error: unknown, event: DelayedEvent | undefined) => void;
}

/** What a user wants sent later. */
export type DelayedDraft = Pick<DelayedEvent, 'roomId' | 'type' | 'stateKey' | 'content' | 'stickyMs'>;

/** Events looked at in one go. */
const BATCH = 100;
/** Timers do not reach as far as events may. */
const MAX_SLEEP = 3_600_000;
/** After a failure that is none of the event's. */
const RETRY_AFTER = 30_000;

type Action = 'cancel' | 'restart' | 'send';

/**
 * Events that are sent after a delay, unless they are cancelled or their time is begun anew (MSC4140). They are in the
 * database and nowhere else: one timer waits for the next that is due. Whether an event is allowed is decided when it is
 * sent. Sending it and removing it from the table is one transaction, so that it is sent once, whatever ends the process.
 *
 * Of several processes the one whose the room is has the timer, and does what is asked of events that are there. When
 * that changes, two may look at the same event for a moment: all that is done to it is done under the room's lock, which
 * the next one gets once everything of the one before is stored.
 */
export class DelayedEvents {
  readonly maxDelay: number;
  readonly #parts: DelayedEventsParts;
  /** Whoever does something to an event is alone with it. */
  readonly #locks = new Map<string, Lock>();
  #timer: NodeJS.Timeout | undefined;
  #wakesAt = Number.POSITIVE_INFINITY;
  #sending: Promise<void> = Promise.resolve();
  #started = false;
  #closed = false;

  constructor(parts: DelayedEventsParts) {
    this.#parts = parts;
    this.maxDelay = parts.maxDelay;
    const { cluster } = parts.rooms.parts;
    cluster.serve('delayed.due', (time: number) => {
      this.#wakeAt(time);
      return undefined;
    });
    cluster.serve(
      'delayed.act',
      async (asked: { action: Action; delayId: string }, roomId) => {
        await this.#act(asked.action, asked.delayId, roomId);
        return undefined;
      },
      { drained: false },
    );
    cluster.onHandover({ take: () => this.#wakeAt(Date.now()) });
  }

  /** Sends what has become due meanwhile, and from then on what becomes due. */
  start(): void {
    this.#started = true;
    this.#wakeAt(Date.now());
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#sending;
  }

  /**
   * @param transaction what the request is known by when it is repeated
   * @returns the id by which anybody who has it may cancel the event, send it, or begin its time anew
   * @throws M_FORBIDDEN, M_INVALID_PARAM, M_UNKNOWN, M_LIMIT_EXCEEDED
   */
  async schedule(
    userId: string,
    draft: DelayedDraft,
    delay: number,
    transaction: string | undefined,
  ): Promise<string> {
    const { store, maxScheduled } = this.#parts;
    this.#checkDelay(delay);
    const transactionHash = transaction === undefined ? undefined : hash('sha256', transaction, 'base64url');
    const earlier = transactionHash && (await store.byTransaction(userId, transactionHash));
    if (earlier) return earlier.delayId;
    await this.#checkDraft(userId, draft);
    const delayId = randomBytes(24).toString('base64url');
    const event: DelayedEvent = { ...draft, delayId, userId, delay, runningSince: Date.now() };
    const storedAs = await store.add(event, transactionHash, maxScheduled);
    if (storedAs === undefined)
      throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'You have too many delayed events', {
        'org.matrix.msc4140.errcode': 'M_MAX_DELAYED_EVENTS_EXCEEDED',
      });
    if (storedAs === delayId) await this.#tellOfDue(draft.roomId, event.runningSince + delay);
    return storedAs;
  }

  scheduled(userId: string): Promise<DelayedEvent[]> {
    return this.#parts.store.ofUser(userId);
  }

  /** @throws M_NOT_FOUND as do the others, when it is cancelled or sent already */
  cancel(delayId: string): Promise<void> {
    return this.#ask('cancel', delayId);
  }

  restart(delayId: string): Promise<void> {
    return this.#ask('restart', delayId);
  }

  /** Sends it now. When that fails, the error is the caller's and the event stays. */
  send(delayId: string): Promise<void> {
    return this.#ask('send', delayId);
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#parts.store.removeAll(userId);
  }

  async #ask(action: Action, delayId: string): Promise<void> {
    const event = await this.#parts.store.get(delayId);
    if (!event) throw gone();
    await this.#parts.rooms.parts.cluster.call('room', event.roomId, 'delayed.act', { action, delayId });
  }

  #act(action: Action, delayId: string, roomId: string): Promise<void> {
    const { rooms, store } = this.#parts;
    return this.#alone(delayId, async () => {
      if (action === 'send') {
        const event = await store.get(delayId);
        if (!event) throw gone();
        return this.#deliver(event);
      }
      const now = Date.now();
      const change = () => (action === 'cancel' ? store.remove(delayId) : store.restart(delayId, now));
      // It is due no sooner than it was: nothing to set the timer for.
      if (!(await rooms.exclusive(roomId, change))) throw gone();
    });
  }

  /** Whoever has the timer; if that process dies, the next one looks for itself. */
  async #tellOfDue(roomId: string, time: number): Promise<void> {
    try {
      await this.#parts.rooms.parts.cluster.call('room', roomId, 'delayed.due', time);
    } catch (error) {
      this.#parts.onFailure(error, undefined);
    }
  }

  #checkDelay(delay: number): void {
    const { maxDelay } = this;
    if (maxDelay === 0) throw forbidden('This server does not delay events');
    if (!Number.isSafeInteger(delay) || delay < 0)
      throw invalidParam('The delay is no number of milliseconds');
    if (delay > maxDelay)
      throw new MatrixError(400, 'M_UNKNOWN', 'The delay is longer than this server allows', {
        'org.matrix.msc4140.errcode': 'M_MAX_DELAY_EXCEEDED',
        'org.matrix.msc4140.max_delay': maxDelay,
      });
  }

  /** What can be told now: that it would be an event at all, by somebody who may send events to the room. */
  async #checkDraft(userId: string, draft: DelayedDraft): Promise<void> {
    const { rooms } = this.#parts;
    const room = await rooms.get(draft.roomId);
    if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
    await buildDraft(rooms, room, asDraft(userId, draft));
  }

  async #deliver(event: DelayedEvent): Promise<void> {
    const { rooms, membership, store, mayAct } = this.#parts;
    const { delayId, userId, roomId, type, stateKey, content } = event;
    const room = await rooms.get(roomId);
    if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
    if (!(await mayAct(userId))) throw forbidden('You may not send events');
    if (type === 'm.room.member' && stateKey !== undefined) {
      // Set again, a membership changes nothing.
      await membership.set(roomId, userId, stateKey, content);
      await store.remove(delayId);
      return;
    }
    const draft = asDraft(userId, event);
    if (draft.redacts !== undefined && !(await mayRedact(rooms, room, userId, draft.redacts)))
      throw forbidden('You may not redact that event');
    if (stateKey === undefined) await checkRelation(rooms, room, draft);
    else await checkState(rooms, room, type, content);
    const { committed } = await rooms.exclusive(roomId, async (live) => {
      // The process whose the room was until now may have sent it.
      if (rooms.parts.cluster.shared && !(await store.get(delayId))) throw gone();
      return appendDraft(rooms, live, draft, undefined, async (tx) => {
        await store.remove(delayId, tx);
      });
    });
    await committed;
    // State that was there already is not sent again.
    if (stateKey !== undefined) await store.remove(delayId);
  }

  #wakeAt(time: number): void {
    if (!this.#started || this.#closed || time >= this.#wakesAt) return;
    clearTimeout(this.#timer);
    this.#wakesAt = time;
    const sleep = Math.min(Math.max(time - Date.now(), 0), MAX_SLEEP);
    this.#timer = setTimeout(() => {
      this.#wakesAt = Number.POSITIVE_INFINITY;
      this.#sending = this.#sending.then(() => this.#sendDue());
    }, sleep).unref();
  }

  async #sendDue(): Promise<void> {
    const { onFailure } = this.#parts;
    try {
      const now = Date.now();
      const due = await this.#ownDue(now);
      // In their order where they are one user's: others need not wait for them.
      const byUser = Map.groupBy(due, ({ userId }) => userId);
      await Promise.all([...byUser.values()].map((events) => this.#sendInOrder(events)));
      const next = due.length >= BATCH ? now : await this.#nextDue(now);
      if (next !== undefined) this.#wakeAt(next);
    } catch (error) {
      onFailure(error, undefined);
      this.#wakeAt(Date.now() + RETRY_AFTER);
    }
  }

  /** What is due in rooms that are this process's. */
  async #ownDue(now: number): Promise<DelayedEvent[]> {
    const { store, rooms } = this.#parts;
    const own: DelayedEvent[] = [];
    let range: Parameters<DelayedEventStore['due']>[0] = { after: Number.MIN_SAFE_INTEGER, upTo: now };
    for (;;) {
      const page = await store.due(range, BATCH);
      own.push(...page.filter(({ roomId }) => rooms.parts.cluster.owns('room', roomId)));
      const last = page.at(-1);
      if (!last || page.length < BATCH || own.length >= BATCH) return own;
      range = { after: last.due, last: last.delayId, upTo: now };
    }
  }

  /** When to look again: when the next one of this process is due, as far as that can be seen at one glance. */
  async #nextDue(now: number): Promise<number | undefined> {
    const { store, rooms } = this.#parts;
    const page = await store.due({ after: now }, BATCH);
    const own = page.find(({ roomId }) => rooms.parts.cluster.owns('room', roomId));
    return (own ?? (page.length === BATCH ? page.at(-1) : undefined))?.due;
  }

  async #sendInOrder(events: readonly DelayedEvent[]): Promise<void> {
    for (const { delayId } of events) {
      if (this.#closed) return;
      await this.#alone(delayId, () => this.#sendIfDue(delayId));
    }
  }

  async #sendIfDue(delayId: string): Promise<void> {
    const { store, onFailure } = this.#parts;
    const event = await store.get(delayId);
    if (!event || event.runningSince + event.delay > Date.now()) return;
    try {
      await this.#deliver(event);
    } catch (error) {
      onFailure(error, event);
      // What is refused now would be refused again; anything else may pass.
      if (error instanceof MatrixError && error.status < 500) await store.remove(delayId);
      else await store.postpone(delayId, Date.now() + RETRY_AFTER);
    }
  }

  async #alone<T>(delayId: string, task: () => Promise<T>): Promise<T> {
    const lock = this.#locks.get(delayId) ?? new Lock();
    this.#locks.set(delayId, lock);
    try {
      return await lock.run(task);
    } finally {
      if (!lock.busy) this.#locks.delete(delayId);
    }
  }
}

function asDraft(sender: string, { type, stateKey, content, stickyMs }: DelayedDraft): Draft {
  const redacts =
    type === 'm.room.redaction' && typeof content.redacts === 'string' ? content.redacts : undefined;
  return { type, sender, content, redacts, stickyMs, ...(stateKey === undefined ? {} : { stateKey }) };
}

const gone = () => notFound('There is no such delayed event');

/** As clients see it. */
export function delayedEventJson(event: DelayedEvent): JsonObject {
  const { delayId, roomId, type, stateKey, content, delay, runningSince } = event;
  return {
    delay_id: delayId,
    room_id: roomId,
    type,
    ...(stateKey === undefined ? {} : { state_key: stateKey }),
    delay,
    running_since: runningSince,
    content,
  };
}
