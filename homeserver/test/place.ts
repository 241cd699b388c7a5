/** Trellis started as anybody starts it, for tests of starting and stopping. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
export const LAUNCH = ['node', 'homeserver/launch.mjs'];
const LIMIT_MS = 30_000;

export async function until(what: string, done: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + LIMIT_MS; !(await done()); ) {
    assert.ok(Date.now() < end, `waited ${LIMIT_MS} ms for ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A zombie waits for whoever looks after orphans.
    return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' && process.platform !== 'linux';
  }
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  await new Promise((closed) => server.close(closed));
  return port;
}

/** A command line, in a process group of its own. */
export class Run {
  out = '';
  readonly child: ChildProcess;
  readonly ended: Promise<number | NodeJS.Signals | null>;

  constructor(command: readonly string[]) {
    this.child = spawn(command[0]!, command.slice(1), { cwd: ROOT, detached: true });
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.out += text;
      });
    this.ended = new Promise((done) => this.child.once('close', (code, signal) => done(code ?? signal)));
  }
}

/** A configuration, its data, and the servers that run on it. */
export class Place {
  readonly folder = mkdtempSync(join(tmpdir(), 'trellis-test-launch-'));
  readonly config = join(this.folder, 'config.yaml');
  readonly url: string;
  readonly #runs: Run[] = [];

  constructor(port: number, more = '') {
    this.url = `http://127.0.0.1:${port}`;
    this.write(`data_dir: data\nhttp: { port: ${port} }\npasswords: { memory_kib: 64, passes: 1 }\n${more}`);
  }

  write(config: string): void {
    writeFileSync(this.config, config);
  }

  run(...command: readonly string[]): Run {
    const run = new Run([...command, '--config', this.config]);
    this.#runs.push(run);
    return run;
  }

  async start(command: readonly string[] = LAUNCH): Promise<Run> {
    const run = this.run(...command);
    let ended = false;
    void run.ended.then(() => {
      ended = true;
    });
    await until('the server', () => {
      assert.ok(!ended, run.out);
      return run.out.includes('Trellis is running');
    });
    assert.equal((await fetch(`${this.url}/_matrix/client/versions`)).status, 200);
    return run;
  }

  /** Runs a command to its end. */
  async command(...command: readonly string[]): Promise<{ code: unknown; out: string }> {
    const run = this.run(...LAUNCH, ...command);
    const code = await run.ended;
    return { code, out: run.out };
  }

  get serverPid(): number {
    return Number(readFileSync(join(this.folder, 'data', 'trellis.pid'), 'utf8').split(' ')[0]);
  }

  get postgresPid(): number {
    return Number(
      readFileSync(join(this.folder, 'data', 'postgres', 'postmaster.pid'), 'utf8').split('\n')[0],
    );
  }

  async login(user: string, password: string): Promise<number> {
    const body = { type: 'm.login.password', identifier: { type: 'm.id.user', user }, password };
    const answer = await fetch(`${this.url}/_matrix/client/v3/login`, {
      method: 'POST',
      body: JSON.stringify(body),
    });
    await answer.arrayBuffer();
    return answer.status;
  }

  async remove(): Promise<void> {
    for (const { child, ended } of this.#runs) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      process.kill(-child.pid!, 'SIGKILL');
      await ended;
    }
    const postgres = join(this.folder, 'data', 'postgres', 'postmaster.pid');
    await until('PostgreSQL to end', () => !existsSync(postgres) || !isAlive(this.postgresPid));
    rmSync(this.folder, { recursive: true, force: true });
  }
}
