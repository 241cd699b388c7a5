import type { PresenceState, ReceiptChange } from '@trellis/storage/streams.ts';
import { presenceContent } from '@trellis/users/presence.ts';
import type { Interest } from './interest.ts';
import type { Appservice } from './registry.ts';

/** Receipts, rooms with typing users, and users with presence that wait for a transaction: the oldest give way. */
const MAX_WAITING = 1_000;
const PRIVATE = 'm.read.private';

type ReceiptContent = Record<string, Record<string, Record<string, { ts: number; thread_id?: string }>>>;

/** Ephemeral data for one application service, the newest of each kind ("Pushing ephemeral data"). */
export class EphemeralNews {
  readonly #service: Appservice;
  readonly #interest: Interest;
  readonly #receipts = new Map<string, ReceiptChange>();
  readonly #typing = new Map<string, readonly string[]>();
  readonly #presence = new Map<string, PresenceState>();

  constructor(service: Appservice, interest: Interest) {
    this.#service = service;
    this.#interest = interest;
  }

  get isEmpty(): boolean {
    return this.#receipts.size + this.#typing.size + this.#presence.size === 0;
  }

  addReceipt(receipt: ReceiptChange): void {
    const { roomId, userId, type, threadId } = receipt;
    if (type === PRIVATE && !this.#service.isInterested(userId)) return;
    put(this.#receipts, JSON.stringify([roomId, userId, type, threadId]), receipt);
  }

  setTyping(roomId: string, userIds: readonly string[]): void {
    put(this.#typing, roomId, userIds);
  }

  setPresence(userId: string, state: PresenceState): void {
    put(this.#presence, userId, state);
  }

  /** The service does not answer: who typed and who was there will be nothing to it. */
  forgetPassing(): void {
    this.#typing.clear();
    this.#presence.clear();
  }

  /** Takes what waits, as far as the service is to have it. */
  async take(): Promise<object[]> {
    if (this.isEmpty) return [];
    const [receipts, typing, presence] = [
      [...this.#receipts.values()],
      [...this.#typing],
      [...this.#presence],
    ];
    for (const waiting of [this.#receipts, this.#typing, this.#presence]) waiting.clear();
    const found: object[] = [];
    for (const [roomId, inRoom] of Map.groupBy(receipts, ({ roomId }) => roomId))
      if (await this.#interest.inRoom(roomId))
        found.push({ type: 'm.receipt', room_id: roomId, content: receiptContent(inRoom) });
    for (const [roomId, userIds] of typing)
      if (await this.#interest.inRoom(roomId))
        found.push({ type: 'm.typing', room_id: roomId, content: { user_ids: userIds } });
    const now = Date.now();
    for (const [userId, state] of presence)
      if (await this.#interest.inUser(userId))
        found.push({ type: 'm.presence', sender: userId, content: presenceContent(state, now) });
    return found;
  }
}

function receiptContent(receipts: readonly ReceiptChange[]): ReceiptContent {
  const content: ReceiptContent = {};
  for (const { eventId, type, userId, ts, threadId } of receipts) {
    const types = content[eventId] ?? {};
    const users = types[type] ?? {};
    content[eventId] = types;
    types[type] = users;
    // There is room for one receipt of a user on an event: the unthreaded one says more (MSC4102).
    if (users[userId] && users[userId].thread_id === undefined) continue;
    users[userId] = threadId === null ? { ts } : { ts, thread_id: threadId };
  }
  return content;
}

function put<V>(waiting: Map<string, V>, key: string, value: V): void {
  waiting.delete(key);
  waiting.set(key, value);
  for (const oldest of waiting.keys()) {
    if (waiting.size <= MAX_WAITING) return;
    waiting.delete(oldest);
  }
}
