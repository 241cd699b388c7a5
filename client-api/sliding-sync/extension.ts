import type { UserMembership } from '@trellis/rooms/memberships.ts';
import type { LedgerName } from './connection.ts';
import type { Interest } from './interest.ts';
import type { News } from './news.ts';
import type { RoomResult } from './room-result.ts';
import type { ExtensionBody } from './schemas.ts';
import { knownUpTo, type SlidingView } from './view.ts';

/** What an answer says of rooms, for extensions to go by. */
export interface Told {
  readonly interest: Interest;
  readonly memberships: ReadonlyMap<string, UserMembership>;
  readonly news: News;
  readonly results: ReadonlyMap<string, RoomResult>;
}

/** An extension's part of an answer. */
export interface Extension {
  readonly json: string;
  readonly empty: boolean;
}

/** The rooms that an extension is about: those of the lists and subscriptions that it names, of all unless it says. */
export function relevantRooms(
  { interest }: Told,
  { lists = ['*'], rooms = ['*'] }: ExtensionBody,
): Set<string> {
  const relevant = new Set<string>();
  for (const roomId of rooms.includes('*') ? interest.subscribed : rooms)
    if (interest.subscribed.has(roomId)) relevant.add(roomId);
  for (const key of lists.includes('*') ? interest.lists.keys() : lists)
    for (const { roomIds } of interest.lists.get(key)?.ranges ?? [])
      for (const roomId of roomIds) relevant.add(roomId);
  return relevant;
}

/**
 * Sorts rooms by what the client has of them. Those with news that are not told now fall behind.
 *
 * @returns rooms of which there may be something to tell, with the position up to which the client has it
 */
export function dueRooms(
  view: SlidingView,
  ledger: LedgerName,
  relevant: ReadonlySet<string>,
  news: ReadonlySet<string>,
): Map<string, number | undefined> {
  const { connection, changes, from } = view;
  const ledgers = connection.ledgers[ledger];
  const due = new Map<string, number | undefined>();
  for (const roomId of relevant) {
    if (ledgers.get(roomId) === 'live' && !news.has(roomId)) continue;
    due.set(roomId, knownUpTo(view, ledger, roomId));
    changes.ledgers[ledger].set(roomId, 'live');
  }
  if (from)
    for (const roomId of news)
      if (!relevant.has(roomId) && ledgers.get(roomId) === 'live')
        changes.ledgers[ledger].set(roomId, from[ledger]);
  return due;
}
