import { dueRooms, type Extension, relevantRooms, type Told } from './extension.ts';
import type { ExtensionBody } from './schemas.ts';
import type { SlidingView } from './view.ts';

type Receipts = Record<string, Record<string, Record<string, object>>>;

/**
 * Receipts (MSC3960). Of a room that is told anew only those on events that are shown, and the user's own: a large
 * room has as many as members.
 */
export async function receiptsExtension(
  view: SlidingView,
  told: Told,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  const { sources, userId, to } = view;
  const relevant = body?.enabled ? relevantRooms(told, body) : new Set<string>();
  const due = dueRooms(view, 'receipts', relevant, told.news.receipts);
  if (!body?.enabled) return undefined;
  for (const roomId of relevant)
    if (told.results.get(roomId)?.anew) {
      due.set(roomId, undefined);
      view.changes.ledgers.receipts.set(roomId, 'live');
    }
  const rooms: Record<string, object> = {};
  for (const [roomId, known] of due) {
    if (told.memberships.get(roomId)?.membership !== 'join') continue;
    const found = (await sources.receipts(roomId, userId, known, to.receipts)) as Receipts | undefined;
    const content =
      known === undefined ? shown(found, told.results.get(roomId)?.timeline ?? [], userId) : found;
    if (content) rooms[roomId] = { type: 'm.receipt', content };
  }
  return { json: JSON.stringify({ rooms }), empty: Object.keys(rooms).length === 0 };
}

function shown(
  receipts: Receipts | undefined,
  timeline: ReadonlyArray<{ readonly eventId: string }>,
  userId: string,
): Receipts | undefined {
  if (!receipts) return undefined;
  const events = new Set(timeline.map(({ eventId }) => eventId));
  const kept: Receipts = {};
  for (const [eventId, types] of Object.entries(receipts)) {
    if (events.has(eventId)) {
      kept[eventId] = types;
      continue;
    }
    for (const [type, users] of Object.entries(types)) {
      const own = users[userId];
      if (own) kept[eventId] = { ...kept[eventId], [type]: { [userId]: own } };
    }
  }
  return Object.keys(kept).length > 0 ? kept : undefined;
}
