import { readFile } from 'node:fs/promises';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { instanceHolder } from './instance-lock.ts';
import { type SupervisorState, supervisorFile } from './supervisor-file.ts';

/** How often it is looked whether all are replaced, in milliseconds. */
const LOOK = 100;

/** Has a running supervisor replace its workers, and waits until that is done. */
export async function restartWorkers(config: Config, print: (line: string) => void): Promise<void> {
  const before = await readState(config);
  process.kill(before.pid, 'SIGUSR2');
  print(`Replacing ${before.workers} workers, one after the other…`);
  for (;;) {
    await new Promise((wake) => setTimeout(wake, LOOK));
    const now = await readState(config);
    if (now.pid !== before.pid) throw new ConfigError('Trellis was started anew meanwhile');
    if (now.restarts === before.restarts) continue;
    if (now.failure !== undefined) throw new ConfigError(`The old ones go on: ${now.failure}`);
    return print('All are replaced.');
  }
}

async function readState(config: Config): Promise<SupervisorState> {
  const holder = await instanceHolder(config.data_dir);
  if (holder === undefined) throw new ConfigError(`no Trellis runs on ${config.data_dir}`);
  const text = await readFile(supervisorFile(config), 'utf8').catch(() => '{}');
  const state = JSON.parse(text || '{}') as SupervisorState;
  if (state.pid !== holder)
    throw new ConfigError('it runs as one process (workers: 1), which has to be stopped and started');
  return state;
}
