/** What became of statements whose connection was lost. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Queryable, Sql } from './database.ts';
import { DatabaseAwayError } from './unavailable.ts';

/** Rests between looks, the first and the longest, in milliseconds. */
const REST = [50, 1000] as const;
/** How long a statement of a lost connection is waited for once the database can be reached, in milliseconds. */
const SETTLE_LIMIT = 30_000;

/** By these answers nothing was done. Others come from a pooler, or from a server that is going down. */
const REFUSALS = new Set(['25006', '25P03', '53300', '57P01', '57P03', '57P05']);

/** Whether the server said that it has not done what it was asked for: silence says nothing. */
export function isAnswer(error: unknown): boolean {
  const { code } = error as { code?: unknown };
  return typeof code === 'string' && REFUSALS.has(code);
}

/** Whether a statement may change something. */
export function stores(sql: Sql): boolean {
  const text = typeof sql === 'string' ? sql : sql.text;
  return !/^\s*(SELECT|WITH)\b/i.test(text) || /\b(INSERT|UPDATE|DELETE)\b/.test(text);
}

// The backend itself, which may not have read yet what it was sent; or, behind a pooler, whatever is at work for us
// since before.
const AT_IT = `
  SELECT now()::text AS now,
         EXISTS (SELECT FROM pg_stat_activity
                 WHERE application_name = $1 AND pid <> pg_backend_pid()
                   AND (pid = $2 OR (state <> 'idle' AND xact_start <= coalesce($3::timestamptz, now())))) AS busy`;

/** Waits until the database can be reached and no backend is at work any more on what was under way. */
export async function untilSettled(
  db: Queryable,
  lost: {
    /** The name that the sessions of the pool bear. */
    readonly session: string;
    readonly backend: number | undefined;
    isClosed(): boolean;
  },
): Promise<void> {
  let since: string | null = null;
  let end = Number.POSITIVE_INFINITY;
  for (let rest: number = REST[0]; Date.now() < end; rest = Math.min(rest * 2, REST[1])) {
    try {
      const params: unknown[] = [lost.session, lost.backend ?? null, since];
      const [row] = await db.query<{ now: string; busy: boolean }>(AT_IT, params);
      if (!row!.busy) return;
      if (since === null) end = Date.now() + SETTLE_LIMIT;
      since ??= row!.now;
    } catch (error) {
      if (!(error instanceof DatabaseAwayError) || lost.isClosed()) throw error;
    }
    await sleep(rest, undefined, { ref: false });
  }
}
