import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from './config/schema.ts';

/** What `npm run trellis -- restart` reads of a supervisor, in its data folder. */
export interface SupervisorState {
  readonly pid: number;
  readonly workers: number;
  /** How many times all workers were replaced, and why that was given up the last time. */
  readonly restarts: number;
  readonly failure?: string | undefined;
}

export function supervisorFile(config: Pick<Config, 'data_dir'>): string {
  return join(config.data_dir, 'supervisor.json');
}

export async function writeSupervisorState(config: Config, state: SupervisorState): Promise<void> {
  const file = supervisorFile(config);
  await writeFile(`${file}.new`, JSON.stringify(state));
  await rename(`${file}.new`, file);
}
