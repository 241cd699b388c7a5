import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const LAUNCH = ['node', 'homeserver/launch.mjs'];
const LIMIT_MS = 30_000;

async function until(what: string, done: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + LIMIT_MS; !(await done()); ) {
    assert.ok(Date.now() < end, `waited ${LIMIT_MS} ms for ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A zombie waits for whoever looks after orphans.
    return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' && process.platform !== 'linux';
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  await new Promise((closed) => server.close(closed));
  return port;
}

/** A command line, in a process group of its own. */
class Run {
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
class Place {
  readonly folder = mkdtempSync(join(tmpdir(), 'trellis-test-launch-'));
  readonly config = join(this.folder, 'config.yaml');
  readonly url: string;
  readonly #runs: Run[] = [];

  constructor(port: number) {
    this.url = `http://127.0.0.1:${port}`;
    this.write(`data_dir: data\nhttp: { port: ${port} }\npasswords: { memory_kib: 64, passes: 1 }\n`);
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

function assertNoError({ out }: Run): void {
  assert.doesNotMatch(out, /"level":[56]0|error/i);
}

describe('a server', async () => {
  const place = new Place(await freePort());
  after(() => place.remove());

  it('says what to do next and stops at Ctrl-C, which npm passes on once more', async () => {
    const run = await place.start(['npm', 'start', '--']);
    assert.match(run.out, /npm run trellis -- register-user NAME --admin/);
    assert.ok(run.out.includes(`choose ${place.url} as its homeserver`));
    process.kill(-run.child.pid!, 'SIGINT');
    assert.equal(await run.ended, 0, run.out);
    assertNoError(run);
    assert.ok(!existsSync(join(place.folder, 'data', 'postgres', 'postmaster.pid')));
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    for (const command of [['npm', 'start', '--'], LAUNCH])
      it(`stops at ${signal} to ${command.join(' ')}`, async (t) => {
        const began = Date.now();
        const run = await place.start(command);
        t.diagnostic(`started again in ${Date.now() - began} ms`);
        const { serverPid } = place;
        run.child.kill(signal);
        assert.equal(await run.ended, 0, run.out);
        assertNoError(run);
        assert.ok(!isAlive(serverPid));
      });

  it('stops, answering at once those who wait in a sync', async () => {
    const run = await place.start();
    const { out } = await place.command('register-user', 'waiting', '--password', 'correct horse battery');
    assert.match(out, /@waiting:localhost is registered/);
    const login = await fetch(`${place.url}/_matrix/client/v3/login`, {
      method: 'POST',
      body: JSON.stringify({ type: 'm.login.password', user: 'waiting', password: 'correct horse battery' }),
    });
    const { access_token } = (await login.json()) as { access_token: string };
    const headers = { authorization: `Bearer ${access_token}` };
    const sync = (query: string) => fetch(`${place.url}/_matrix/client/v3/sync?${query}`, { headers });
    const { next_batch } = (await (await sync('')).json()) as { next_batch: string };
    const waiting = sync(`since=${next_batch}&timeout=60000`).then((answer) => answer.status);
    await new Promise((wake) => setTimeout(wake, 200));
    const began = Date.now();
    run.child.kill('SIGTERM');
    assert.equal(await run.ended, 0, run.out);
    assert.equal(await waiting, 200);
    assert.ok(Date.now() - began < 4_000, `it took ${Date.now() - began} ms`);
  });

  const kills: Array<[what: string, pid: (run: Run) => number]> = [
    ['the server', () => place.serverPid],
    ['PostgreSQL', () => place.postgresPid],
    ['what launched it', (run) => run.child.pid!],
    ['the process group', (run) => -run.child.pid!],
  ];
  for (const [what, pidOf] of kills)
    it(`starts again after kill -9 of ${what}`, async () => {
      const run = await place.start();
      const { serverPid, postgresPid } = place;
      process.kill(pidOf(run), 'SIGKILL');
      assert.notEqual(await run.ended, 0);
      // Nothing is left behind, even if it were not started again.
      await until('all to end', () => !isAlive(serverPid) && !isAlive(postgresPid));
      const again = await place.start();
      again.child.kill('SIGTERM');
      assert.equal(await again.ended, 0, again.out);
      assertNoError(again);
    });

  it('starts again at once after kill -9 of all there is', async () => {
    const run = await place.start();
    process.kill(place.postgresPid, 'SIGKILL');
    process.kill(-run.child.pid!, 'SIGKILL');
    const again = await place.start();
    again.child.kill('SIGTERM');
    assert.equal(await again.ended, 0, again.out);
  });
});

describe('the command line', async () => {
  const place = new Place(await freePort());
  after(() => place.remove());

  it('makes and resets users beside the running server', async () => {
    await place.start();
    const made = await place.command('register-user', 'admin', '--admin');
    assert.match(made.out, /@admin:localhost is registered as an administrator/);
    const [, password = ''] = /Password: (\S+)/.exec(made.out) ?? [];
    assert.equal(await place.login('admin', password), 200);
    const twice = await place.command('register-user', 'admin');
    assert.equal(twice.code, 1);
    assert.doesNotMatch(twice.out, /^\s+at /m, 'says why, not where in the code');
    const reset = await place.command(
      'reset-password',
      'admin',
      '--password',
      'another horse battery staple',
    );
    assert.match(reset.out, /The password of @admin:localhost is set/);
    assert.equal(await place.login('admin', password), 403);
    assert.equal(await place.login('admin', 'another horse battery staple'), 200);
    const unknown = await place.command('reset-password', 'nobody');
    assert.deepEqual(unknown, { code: 1, out: 'there is no user nobody\n' });
  });

  it('lets one server alone work on a folder', async () => {
    const second = await place.command();
    assert.equal(second.code, 1);
    assert.match(second.out, /Trellis runs on .* already \(process \d+\): stop that first/);
    assert.doesNotMatch(second.out, /^\s+at /m);
  });

  it('makes keys and shows the configuration', async () => {
    const key = await place.command('generate-key');
    assert.match(key.out, /^ed25519 \S+ [A-Za-z0-9+/]{43}\n$/);
    assert.equal(key.code, 0);
    const shown = await place.command('check-config');
    assert.equal(shown.code, 0);
    assert.equal(JSON.parse(shown.out).data_dir, join(place.folder, 'data'));
  });

  it('says what is wrong', async () => {
    const port = Number(new URL(place.url).port);
    const refusals: Array<[config: string, command: string[], says: RegExp]> = [
      ['http: { port: none }', [], /http\.port: must be integer; for example: port: 8008\n$/],
      ['http: { port: none }', ['check-config'], /http\.port: must be integer/],
      ['htp: {}', [], /htp: there is no such option; known here: .*http/],
      [`data_dir: other\nhttp: { port: ${port} }`, [], /another program uses that port/],
      ['', ['make-coffee'], /there is no command "make-coffee"[\s\S]*register-user/],
      ['', ['--colour'], /--colour/],
      ['', ['register-user'], /say which user/],
    ];
    for (const [config, command, says] of refusals) {
      place.write(config);
      const { code, out } = await place.command(...command);
      assert.equal(code, 1, out);
      assert.match(out, says);
      assert.doesNotMatch(out, /^\s+at /m);
    }
    rmSync(place.config);
    assert.match((await place.command()).out, /cannot read the configuration: .*config\.yaml/);
  });
});
