import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError } from './config/load.ts';

/** How long a server that is stopping already is waited for, in milliseconds. */
const PATIENCE = 3_000;

/**
 * Makes sure that only one server works on a data folder: a second one would stop the first one's PostgreSQL. The
 * file names a process by id and time of start, so that neither a crash nor a copy of the folder leaves a lock.
 *
 * @param several whether more than one may work on it, as the database is elsewhere: the file is the first one's
 */
export async function lockInstance(dataDir: string, several = false): Promise<void> {
  await mkdir(dataDir, { recursive: true });
  for (const end = Date.now() + PATIENCE; ; ) {
    const pid = await instanceHolder(dataDir);
    if (pid === undefined || pid === process.pid) break;
    if (several) return;
    if (Date.now() > end)
      throw new ConfigError(
        `Trellis runs on ${dataDir} already (process ${pid}): stop that first, or use another data_dir`,
      );
    await new Promise((wake) => setTimeout(wake, 20));
  }
  await writeFile(lockFile(dataDir), `${await identity(process.pid)}\n`);
}

/** The process that works on a data folder, if one does. */
export async function instanceHolder(dataDir: string): Promise<number | undefined> {
  const holder = (await readFile(lockFile(dataDir), 'utf8').catch(() => '')).trim();
  const pid = Number(holder.split(' ')[0]);
  return pid > 0 && holder === (await identity(pid)) ? pid : undefined;
}

function lockFile(dataDir: string): string {
  return join(dataDir, 'trellis.pid');
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
