import type { JsonObject } from '@trellis/protocol/event.ts';
import type { ReceiptChange } from '@trellis/storage/streams.ts';
import { receiptEdus } from '@trellis/users/receipt-edus.ts';

/** An EDU as it stands in a transaction. */
export interface Edu {
  readonly edu_type: string;
  readonly content: JsonObject;
}

/** Of each kind; what is beyond is dropped: whoever is that slow has no use for it. */
const MAX_WAITING = 2_000;
const USERS_IN_PRESENCE = 100;

/**
 * EDUs for one destination that are worth nothing when they come late. Only the newest of each user and room is
 * kept, and several go in one EDU where the format has it.
 */
export class EphemeralEdus {
  readonly #typing = new Map<string, JsonObject>();
  readonly #receipts = new Map<string, ReceiptChange>();
  readonly #presence = new Map<string, JsonObject>();

  get isEmpty(): boolean {
    return this.#typing.size === 0 && this.#receipts.size === 0 && this.#presence.size === 0;
  }

  typing(roomId: string, userId: string, typing: boolean): void {
    put(this.#typing, `${roomId} ${userId}`, { room_id: roomId, user_id: userId, typing });
  }

  receipt(receipt: ReceiptChange): void {
    put(this.#receipts, `${receipt.roomId} ${receipt.userId} ${receipt.threadId}`, receipt);
  }

  /** @param update an item of the EDU's `push` */
  presence(userId: string, update: JsonObject): void {
    put(this.#presence, userId, update);
  }

  clear(): void {
    this.#typing.clear();
    this.#receipts.clear();
    this.#presence.clear();
  }

  /** Takes out what fits in `limit` EDUs. */
  take(limit: number): Edu[] {
    const edus: Edu[] = [];
    for (const [key, content] of this.#typing) {
      if (edus.length >= limit) return edus;
      edus.push({ edu_type: 'm.typing', content });
      this.#typing.delete(key);
    }
    if (this.#receipts.size > 0) {
      const contents = receiptEdus(this.#receipts.values());
      // Each thread of a room takes one; nobody reads in that many at once.
      edus.push(
        ...contents.slice(0, limit - edus.length).map((content) => ({ edu_type: 'm.receipt', content })),
      );
      this.#receipts.clear();
    }
    while (this.#presence.size > 0 && edus.length < limit) {
      const updates = [...this.#presence].slice(0, USERS_IN_PRESENCE);
      for (const [userId] of updates) this.#presence.delete(userId);
      edus.push({ edu_type: 'm.presence', content: { push: updates.map(([, update]) => update) } });
    }
    return edus;
  }
}

function put<V>(map: Map<string, V>, key: string, value: V): void {
  // The newest go last.
  map.delete(key);
  if (map.size < MAX_WAITING) map.set(key, value);
}
