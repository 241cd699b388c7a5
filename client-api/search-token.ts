import { invalidParam } from '@trellis/protocol/errors.ts';

/** Where the next page of a search begins. */
export interface SearchPlace {
  /** By time: results before this position. */
  readonly before: number | undefined;
  /** By rank: after as many results. */
  readonly offset: number;
  /** The group that is paged through, when it is one. */
  readonly group?: { readonly key: 'room_id' | 'sender'; readonly value: string };
}

/** Results that can be paged through by rank. */
const MAX_OFFSET = 10_000;

export function searchToken({ before, offset, group }: SearchPlace): string {
  return Buffer.from(JSON.stringify([before ?? null, offset, group?.key, group?.value])).toString(
    'base64url',
  );
}

/** @throws M_INVALID_PARAM when the text is no token of ours */
export function parseSearchToken(text: string): SearchPlace {
  const unknown = () => invalidParam('Unknown pagination token');
  let parts: unknown;
  try {
    parts = JSON.parse(Buffer.from(text, 'base64url').toString());
  } catch {
    throw unknown();
  }
  if (!Array.isArray(parts)) throw unknown();
  const [before, offset, key, value] = parts as unknown[];
  if (before !== null && !Number.isSafeInteger(before)) throw unknown();
  if (!Number.isSafeInteger(offset) || (offset as number) < 0 || (offset as number) > MAX_OFFSET)
    throw unknown();
  const place = { before: (before as number | null) ?? undefined, offset: offset as number };
  if (key === undefined || key === null) return place;
  if ((key !== 'room_id' && key !== 'sender') || typeof value !== 'string') throw unknown();
  return { ...place, group: { key, value } };
}
