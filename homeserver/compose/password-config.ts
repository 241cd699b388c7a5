import { readFileSync } from 'node:fs';
import type { PasswordConfig } from '@trellis/users/passwords.ts';
import { ConfigError } from '../config/load.ts';
import type { Config } from '../config/schema.ts';

/** How passwords are hashed; with the pepper from its file, if there is one. */
export function passwordConfig({ passwords }: Config): PasswordConfig {
  return {
    memoryKib: passwords.memory_kib,
    passes: passwords.passes,
    minLength: passwords.min_length,
    peppers: passwords.pepper_file === undefined ? [] : readPeppers(passwords.pepper_file),
  };
}

/** One `id secret` a line, the newest first: older ones verify what was hashed with them. */
function readPeppers(file: string) {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new ConfigError(`passwords.pepper_file: ${(error as Error).message}`);
  }
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => {
      const [id, secret, ...rest] = line.trim().split(/\s+/);
      if (!id || !secret || rest.length > 0)
        throw new ConfigError(`${file}: each line is "ID SECRET"; for example: 2026 4f1c…`);
      return { id, secret };
    });
}
