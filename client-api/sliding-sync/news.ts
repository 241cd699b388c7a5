import type { Positions } from '@trellis/rooms/notifier.ts';
import type { Ledgers } from './connection.ts';
import type { SlidingSources } from './view.ts';

/** Rooms of the user in which something happened since the client looked. */
export interface News {
  readonly events: ReadonlySet<string>;
  readonly receipts: ReadonlySet<string>;
  readonly typing: ReadonlySet<string>;
  readonly accountData: ReadonlySet<string>;
}

/**
 * What happened in the rooms that the client knows, by the user's feed. When that does not reach back far enough, in
 * which of them anything may have happened.
 */
export function findNews(
  { sources, facts }: Pick<SlidingSources, 'sources' | 'facts'>,
  userId: string,
  ledgers: Ledgers,
  from: Positions | undefined,
  to: Positions,
): News {
  const news = {
    events: new Set<string>(),
    receipts: new Set<string>(),
    typing: new Set<string>(),
    accountData: new Set<string>(),
  };
  if (from === undefined) return news;
  const feed = sources.notifier.feed(userId);
  if (feed.covers(from)) {
    for (const { stream, roomId } of feed.between(from, to))
      if (roomId !== null && stream !== 'toDevice') news[stream].add(roomId);
    return news;
  }
  for (const roomId of ledgers.events.keys())
    if ((facts.activity(roomId) ?? Number.POSITIVE_INFINITY) > from.events) news.events.add(roomId);
  for (const roomId of ledgers.receipts.keys()) news.receipts.add(roomId);
  for (const roomId of ledgers.accountData.keys()) news.accountData.add(roomId);
  for (const roomId of ledgers.events.keys()) if (sources.typing(roomId).length > 0) news.typing.add(roomId);
  return news;
}
