/** A real Redis for tests, where there is one. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';

/** The program: what `TRELLIS_REDIS_SERVER` names, or `redis-server` in the path. */
export async function redisProgram(): Promise<string | undefined> {
  const named = process.env.TRELLIS_REDIS_SERVER;
  if (named) return named;
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, 'redis-server');
    const isThere = await access(path).then(
      () => true,
      () => false,
    );
    if (isThere) return path;
  }
  return undefined;
}

export interface TestRedis {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** `redis-cli`. */
  cli(...args: string[]): Promise<string>;
  /** At once, as if by `kill -9`. */
  kill(): Promise<void>;
  /** After `kill`, at the same port, empty. */
  restart(): Promise<void>;
  close(): Promise<void>;
}

export interface TestRedisOptions {
  /** Further ones for the server. */
  readonly args?: readonly string[];
  /** As a Sentinel, with these lines of its configuration. */
  readonly sentinel?: readonly string[];
  /** A free one where it is not given. */
  readonly port?: number;
}

export async function startRedis({ args = [], sentinel, port }: TestRedisOptions = {}): Promise<TestRedis> {
  const program = await redisProgram();
  if (!program) throw new Error('no redis-server: see redisProgram');
  const dir = await mkdtemp(join(tmpdir(), 'trellis-redis-'));
  const used = port ?? (await freePort());
  const cli = async (...words: string[]) => {
    const command = program.replace(/redis-server$/, 'redis-cli');
    return (await promisify(execFile)(command, ['-p', String(used), ...words])).stdout.trim();
  };
  let server: ChildProcess | undefined;
  const start = async () => {
    const common = ['--port', String(used), '--bind', '127.0.0.1', '--dir', dir];
    const config = join(dir, 'sentinel.conf');
    if (sentinel) await writeFile(config, sentinel.join('\n'));
    const all = sentinel
      ? [config, '--sentinel', ...common]
      : [...common, '--save', '', '--appendonly', 'no', ...args];
    server = spawn(program, all, { stdio: 'ignore' });
    // Not to outlive a test that is killed, as far as that can be.
    process.once('exit', killNow);
    for (let tries = 0; (await cli('ping').catch(() => '')) !== 'PONG'; tries++) {
      if (tries > 100 || server.exitCode !== null) throw new Error('redis-server does not start');
      await new Promise((passed) => setTimeout(passed, 50));
    }
  };
  const killNow = () => void server?.kill('SIGKILL');
  const kill = async () => {
    const dying = server;
    server = undefined;
    process.off('exit', killNow);
    if (!dying || dying.exitCode !== null || dying.signalCode !== null) return;
    const exited = new Promise((done) => dying.once('exit', done));
    dying.kill('SIGKILL');
    await exited;
  };
  await start();
  return {
    url: `redis://127.0.0.1:${used}`,
    port: used,
    get pid() {
      return server!.pid!;
    },
    cli,
    kill,
    restart: start,
    async close() {
      await kill();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** A port that nobody listens at now. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  await new Promise((closed) => server.close(closed));
  return port;
}
