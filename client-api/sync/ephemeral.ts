import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { JoinedNews, SyncView } from './view.ts';

/** The content of `m.receipt`: users by type of receipt by event. */
type ReceiptContent = Record<string, Record<string, Record<string, object>>>;

export interface Ephemeral {
  readonly events: object[];
  /** The user has read on, so that the counts of what is unread have changed, whatever the filter says of receipts. */
  readonly readOn: boolean;
}

/** Receipts and typing in a room, as far as the filter lets them pass. */
export async function ephemeralEvents(
  view: SyncView,
  { roomId }: Room,
  news: JoinedNews,
  isNew: boolean,
): Promise<Ephemeral> {
  const { sources, userId, filter, receiptsFrom, receiptsTo } = view;
  const events: Array<{ type: string; content: object }> = [];
  let readOn = false;
  if (news.receipts || isNew) {
    const content = await sources.receipts(roomId, userId, isNew ? undefined : receiptsFrom, receiptsTo);
    if (content) {
      events.push({ type: 'm.receipt', content });
      readOn = namesUser(content as ReceiptContent, userId);
    }
  }
  if (news.typing) events.push({ type: 'm.typing', content: { user_ids: sources.typing(roomId) } });
  const wanted = filter.room?.ephemeral;
  if (!wanted) return { events, readOn };
  const passed = events.filter((event) => matchesEventFilter(wanted, { ...event, roomId, sender: userId }));
  return { events: passed, readOn };
}

function namesUser(content: ReceiptContent, userId: string): boolean {
  return Object.values(content).some((types) =>
    Object.values(types).some((users) => Object.hasOwn(users, userId)),
  );
}
