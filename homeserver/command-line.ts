import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Logger, pino } from 'pino';
import { loadConfig, readConfig } from './config/load.ts';
import type { Config } from './config/schema.ts';

export function readCommandLine() {
  return parseArgs({
    allowPositionals: true,
    options: {
      config: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
      admin: { type: 'boolean' },
      password: { type: 'string' },
      check: { type: 'boolean' },
      rebuild: { type: 'boolean' },
    },
  });
}

export function configFrom(file: string | undefined): Config {
  if (file !== undefined) return loadConfig(file);
  const usual = join(process.cwd(), 'config.yaml');
  return existsSync(usual) ? loadConfig(usual) : readConfig('', process.cwd());
}

/** @param base what every line says */
export function openLog(config: Config, base: Record<string, unknown> | null): Logger {
  const log = pino({ level: config.log.level, base }, pino.destination({ sync: false }));
  process.on('unhandledRejection', (err) =>
    log.error({ err }, 'a promise was rejected that nobody waited for'),
  );
  return log;
}

/** What an error at the start says to whoever started it. */
export function explain(error: unknown): string {
  const { message, code, name, stack } = error as Error & { code?: string };
  if (code === 'EADDRINUSE')
    return `${message}: another program uses that port; stop it, or change http.port or tls.port`;
  if (name === 'ConfigError' || name === 'MatrixError' || code?.startsWith('ERR_PARSE_ARGS')) return message;
  return `Trellis could not start: ${stack ?? String(error)}`;
}
