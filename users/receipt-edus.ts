import type { JsonObject } from '@trellis/protocol/event.ts';
import type { ReceiptChange } from '@trellis/storage/streams.ts';

/**
 * The contents of `m.receipt` EDUs that tell another server of receipts, all for rooms that it is in. Private receipts
 * are left out. An EDU has room for one receipt of a user in a room, so that those in several threads take several
 * (MSC4102: no unthreaded receipt is lost to a threaded one).
 */
export function receiptEdus(changes: Iterable<ReceiptChange>): JsonObject[] {
  const edus: Array<Record<string, { 'm.read': Record<string, JsonObject> }>> = [];
  const newest = new Map<string, ReceiptChange>();
  for (const change of changes)
    if (change.type === 'm.read')
      newest.set(`${change.roomId} ${change.userId} ${change.threadId ?? ''}`, change);
  for (const { roomId, userId, eventId, ts, threadId } of newest.values()) {
    let edu = edus.find((each) => each[roomId]?.['m.read'][userId] === undefined);
    if (!edu) {
      edu = {};
      edus.push(edu);
    }
    edu[roomId] ??= { 'm.read': {} };
    edu[roomId]['m.read'][userId] = {
      event_ids: [eventId],
      data: threadId === null ? { ts } : { ts, thread_id: threadId },
    };
  }
  return edus;
}
