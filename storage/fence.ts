import type { Queryable } from './database.ts';
import { UnavailableError } from './unavailable.ts';

/** What a process among several has to show with each commit of events: its row in `cluster_members`. */
export interface Fence {
  readonly memberId: string;
  term(): number;
}

/** SQLSTATE that `require_member` (migration 0036) raises. */
const SHUT_OUT = 'TRFEN';

/** The others have shut this process out: nothing of what it wanted to store was stored, nor will be. */
export class FencedError extends UnavailableError {}

/**
 * To be called first in a transaction that must not happen once this process is shut out. The transaction then holds
 * the row, so that shutting out waits for its end.
 */
export async function requireMember(tx: Queryable, fence: Fence | undefined): Promise<void> {
  if (!fence) return;
  await fenced(
    tx.query({ name: 'require-member', text: 'SELECT require_member($1, $2)' }, [
      fence.memberId,
      fence.term(),
    ]),
  );
}

/** Makes a `FencedError` of what the database raised. */
export async function fenced<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if ((error as { code?: unknown }).code !== SHUT_OUT) throw error;
    throw new FencedError('This process was shut out', error);
  }
}
