import { setTimeout as delay } from 'node:timers/promises';
import type { Json } from '@trellis/cluster/cluster.ts';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { RelatedRedactions } from '@trellis/rooms/related-redactions.ts';
import { checkRelation } from '@trellis/rooms/relation-rules.ts';
import { mayRedact } from '@trellis/rooms/room-rights.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { appendDraft, type Draft } from '@trellis/rooms/send.ts';
import type { Transactions } from '@trellis/rooms/transactions.ts';
import { type Requester, requireActive } from './authentication.ts';

export interface TransactionSendsDeps {
  readonly rooms: Rooms;
  readonly transactions: Transactions;
  readonly relatedRedactions?: Pick<RelatedRedactions, 'add'>;
}

/** An event that a client wants to be sent once. */
export interface TransactionSend {
  readonly requester: Pick<Requester, 'userId' | 'deviceId' | 'tokenId' | 'isSuspended'>;
  readonly roomId: string;
  readonly txnId: string;
  readonly draft: Draft;
  /** A redaction that goes for what relates to its target in these ways too (MSC3912). */
  readonly alsoRedacts?: { readonly relTypes: readonly string[]; readonly reason?: string };
}

/** How long a send goes on to try where processes die, in milliseconds, and how often. */
const PATIENCE = 20_000;
const RETRY_MS = 50;

/** The room has another home since it was asked. */
class Moved extends Error {}

/**
 * Sends events with a transaction id: at the room's home, where it is known what has been sent and what is being sent.
 * So it may be tried again when the home has died, and gives one event all the same.
 */
export class TransactionSends {
  readonly #deps: TransactionSendsDeps;

  constructor(deps: TransactionSendsDeps) {
    this.#deps = deps;
    deps.rooms.parts.cluster.serve(
      'room.send',
      async (send: TransactionSend) => {
        try {
          return { eventId: await this.#sendHere(send) };
        } catch (error) {
          if (error instanceof Moved) return { eventId: null };
          throw error;
        }
      },
      // A hand-over waits for those that run, by the room's lock; the others go on at the next home.
      { drained: false },
    );
  }

  /** @returns the event's id */
  async send(send: TransactionSend): Promise<string> {
    const { cluster } = this.#deps.rooms.parts;
    if (!cluster.shared) return this.#sendHere(send);
    // What JSON can't say would be something else at the home: 1e400, say, is read as Infinity and written as null.
    if (!cluster.owns('room', send.roomId)) canonicalJson(send.draft.content, { lax: true });
    const until = Date.now() + PATIENCE;
    let failure: MatrixError | undefined;
    while (Date.now() < until) {
      try {
        const args = send as unknown as Json;
        const { eventId } = await cluster.call<{ eventId: string | null }>(
          'room',
          send.roomId,
          'room.send',
          args,
        );
        if (eventId !== null) return eventId;
      } catch (error) {
        if (!(error instanceof MatrixError) || error.status !== 503) throw error;
        failure = error;
      }
      await delay(RETRY_MS);
    }
    throw failure ?? new MatrixError(503, 'M_UNKNOWN', 'The room is out of reach: try again later');
  }

  #sendHere(send: TransactionSend): Promise<string> {
    const { rooms, transactions, relatedRedactions } = this.#deps;
    const { requester, roomId, txnId, draft, alsoRedacts } = send;
    const { userId } = requester;
    return transactions.once(requester, `${roomId} ${draft.type} ${txnId}`, async ({ deviceId }) => {
      const room = await rooms.get(roomId);
      if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
      if (requester.isSuspended && !(await this.#redactsOwn(send))) requireActive(requester);
      // Since room version 3 the auth rules let redactions through that nobody would heed.
      if (draft.redacts !== undefined && !(await mayRedact(rooms, room, userId, draft.redacts)))
        throw forbidden('You may not redact that event');
      await checkRelation(rooms, room, draft);
      const { event, committed } = await rooms.exclusive(roomId, (live) => {
        // What another process may be sending now is known at the home only.
        if (!rooms.parts.cluster.owns('room', roomId)) throw new Moved();
        return appendDraft(rooms, live, draft, { deviceId, txnId });
      });
      await committed;
      if (alsoRedacts && draft.redacts !== undefined)
        await relatedRedactions?.add({ roomId, target: draft.redacts, sender: userId, ...alsoRedacts });
      return event.eventId;
    });
  }

  async #redactsOwn({ requester, draft }: TransactionSend): Promise<boolean> {
    const { redacts } = draft;
    const target = redacts === undefined ? undefined : await this.#deps.rooms.parts.events.get(redacts);
    return target?.sender === requester.userId;
  }
}
