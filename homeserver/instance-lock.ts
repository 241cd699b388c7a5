import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError } from './config/load.ts';

/** How long a server that is stopping already is waited for, in milliseconds. */
const PATIENCE = 3_000;

/**
 * Makes sure that only one server works on a data folder: a second one would stop the first one's PostgreSQL. The
 * file names a process by id and time of start, so that neither a crash nor a copy of the folder leaves a lock.
 */
export async function lockInstance(dataDir: string): Promise<void> {
  const file = join(dataDir, 'trellis.pid');
  const holder = (await readFile(file, 'utf8').catch(() => '')).trim();
  const pid = Number(holder.split(' ')[0]);
  const runs = async () => pid > 0 && pid !== process.pid && holder === (await identity(pid));
  for (const end = Date.now() + PATIENCE; await runs(); ) {
    if (Date.now() > end)
      throw new ConfigError(
        `Trellis runs on ${dataDir} already (process ${pid}): stop that first, or use another data_dir`,
      );
    await new Promise((wake) => setTimeout(wake, 20));
  }
  await writeFile(file, `${await identity(process.pid)}\n`);
}

/** Process id and, where the system tells it, the time of its start. */
async function identity(pid: number): Promise<string> {
  try {
    process.kill(pid, 0);
  } catch {
    return 'ended';
  }
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The name in parentheses may hold anything; the start time is the 20th field after it.
  const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  return `${pid} ${started}`.trim();
}
