import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { Stream } from '@trellis/storage/streams.ts';

/**
 * Reads, changes and stores in one transaction what no other process may change meanwhile, and announces it after the
 * commit.
 *
 * @param lock what is locked
 * @param work calls `announce` for each change, which gives the position to store it with
 */
export async function lockedWrite<Change, T>(
  db: Database,
  stream: Stream<Change>,
  lock: string,
  work: (tx: Queryable, announce: (change: Change) => Promise<number>) => Promise<T>,
): Promise<T> {
  const reserved: Array<{ position: number; change: Change }> = [];
  let committed = false;
  try {
    const result = await db.transaction(async (tx) => {
      await lockName(tx, lock);
      return work(tx, async (change) => {
        // Within the lock, so that positions are in the order of the changes.
        const position = await stream.reserve();
        reserved.push({ position, change });
        await stream.guard()(tx);
        return position;
      });
    });
    committed = true;
    return result;
  } finally {
    await Promise.all(
      reserved.map(({ position, change }) => stream.conclude(position, committed ? [change] : [])),
    );
  }
}

/** Until the end of the transaction. */
export async function lockName(tx: Queryable, name: string): Promise<void> {
  await tx.query({ name: 'lock-name', text: 'SELECT pg_advisory_xact_lock(hashtextextended($1, 0))' }, [
    name,
  ]);
}
