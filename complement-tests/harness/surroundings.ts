import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { freePort } from './ports.ts';

const ROOT = new URL('../../', import.meta.url).pathname;
const START_LIMIT_MS = 30_000;

/** The Redis to test with: the one named in the environment, or the one that is installed. */
export function redisServer(): string | undefined {
  const program = process.env.TRELLIS_REDIS_SERVER ?? 'redis-server';
  return spawnSync(program, ['--version']).status === 0 ? program : undefined;
}

/** What processes on several machines share: a PostgreSQL and a Redis. */
export class Surroundings {
  readonly databaseUrl: string;
  readonly redisUrl: string;
  readonly #children: readonly ChildProcess[];

  private constructor(databaseUrl: string, redisUrl: string, children: readonly ChildProcess[]) {
    this.databaseUrl = databaseUrl;
    this.redisUrl = redisUrl;
    this.#children = children;
  }

  static async start(folder: string): Promise<Surroundings> {
    const program = redisServer();
    if (!program) throw new Error('several processes need a redis-server: TRELLIS_REDIS_SERVER names one');
    const postgres = spawn(process.execPath, [join(ROOT, 'storage/postgres-alone.ts'), join(folder, 'db')], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const port = await freePort();
    const redis = spawn(
      program,
      ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--dir', folder],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const [url] = await Promise.all([says(postgres, /^postgres:.*$/m), says(redis, /Ready to accept/)]);
    return new Surroundings(url, `redis://127.0.0.1:${port}`, [postgres, redis]);
  }

  async stop(): Promise<void> {
    await Promise.all(
      this.#children.map(
        (child) =>
          new Promise<void>((ended) => {
            if (child.exitCode !== null || child.signalCode !== null) return ended();
            child.once('exit', () => ended());
            child.kill('SIGTERM');
          }),
      ),
    );
  }

  /** For the end of the test process. PostgreSQL ends with the process that looks after it. */
  killNow(): void {
    for (const child of this.#children) child.kill('SIGKILL');
  }
}

function says(child: ChildProcess, what: RegExp): Promise<string> {
  return new Promise((found, failed) => {
    let said = '';
    const late = setTimeout(
      () => failed(new Error(`${child.spawnfile} did not start: ${said}`)),
      START_LIMIT_MS,
    );
    child.once('error', failed);
    child.once('exit', () => failed(new Error(`${child.spawnfile} ended: ${said}`)));
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-10_000);
      const [match] = what.exec(said) ?? [];
      if (match === undefined) return;
      clearTimeout(late);
      found(match);
    });
  });
}
