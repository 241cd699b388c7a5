import { invalidParam } from '@trellis/protocol/errors.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';

const ORDER = ['events', 'accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'] as const;

/** A sync token: where all streams stood. Clients must not look inside. */
export function syncToken(positions: Positions): string {
  return `s${ORDER.map((stream) => positions[stream]).join('_')}`;
}

/** @throws M_INVALID_PARAM when the text is no token of ours */
export function parseSyncToken(text: string): Positions {
  const parts = /^s(\d+(?:_\d+)*)$/.exec(text)?.[1]?.split('_').map(Number);
  if (parts?.length !== ORDER.length || !parts.every(Number.isSafeInteger))
    throw invalidParam('Unknown sync token');
  return Object.fromEntries(ORDER.map((stream, i) => [stream, parts[i]!])) as unknown as Positions;
}

/** The `pos` of a sliding sync: where all streams stood, and which answer of which connection it is. */
export function posToken(positions: Positions, answer: string): string {
  return `${syncToken(positions)}-${answer}`;
}

/** @throws M_INVALID_PARAM when the text is no token of ours */
export function parsePosToken(text: string): Positions {
  return parseSyncToken(text.split('-', 1)[0]!);
}

/**
 * A place in a room's order, between two events: everything at or before `pos` lies behind it. Sync tokens serve as
 * places too, so that a client can page back from where it synced.
 */
export function placeToken(pos: number): string {
  return `p${pos}`;
}

/** @throws M_INVALID_PARAM when the text is no token of ours */
export function parsePlaceToken(text: string): number {
  if (text.startsWith('s')) return parsePosToken(text).events;
  const pos = /^p(-?\d+)$/.exec(text)?.[1];
  if (pos === undefined || !Number.isSafeInteger(Number(pos))) throw invalidParam('Unknown pagination token');
  return Number(pos);
}
