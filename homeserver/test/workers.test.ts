import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { Agent, type IncomingMessage, request } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { freePort, isAlive, Place, type Run, until } from './place.ts';

const PASSWORD = 'correct horse battery';

/** Workers that have said that they are there, the newest last. */
function workersOf(run: Run): Array<{ worker: number; pid: number }> {
  return run.out
    .split('\n')
    .filter((line) => line.startsWith('{') && line.includes('"worker":') && line.includes('"started"'))
    .map((line) => JSON.parse(line) as { worker: number; pid: number });
}

const living = (run: Run) => workersOf(run).filter(({ pid }) => isAlive(pid));

/** A client that keeps its connections and asks again and again. Whatever goes wrong is kept. */
class Asking {
  readonly failures: string[] = [];
  answers = 0;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 6 });
  readonly #url: string;
  readonly #token: string;
  #stopped = false;
  readonly #loops: Array<Promise<void>>;

  constructor(url: string, token: string) {
    this.#url = url;
    this.#token = token;
    this.#loops = Array.from({ length: 6 }, () => this.#loop());
  }

  async #loop(): Promise<void> {
    while (!this.#stopped) {
      await this.ask('/_matrix/client/v3/account/whoami');
      await new Promise((wake) => setTimeout(wake, 5 + Math.random() * 40));
    }
  }

  async ask(path: string): Promise<unknown> {
    const headers = { authorization: `Bearer ${this.#token}` };
    try {
      const answer = await new Promise<IncomingMessage>((answered, failed) => {
        request(this.#url + path, { agent: this.#agent, headers })
          .on('response', answered)
          .on('error', failed)
          .end();
      });
      const text = (await answer.toArray()).join('');
      if (answer.statusCode === 200) this.answers++;
      else this.failures.push(`${answer.statusCode} ${text}`);
      return JSON.parse(text);
    } catch (error) {
      this.failures.push(String(error));
      return undefined;
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#loops);
    this.#agent.destroy();
  }
}

describe('several workers', () => {
  let place: Place;
  let run: Run;
  let token: string;

  before(async () => {
    place = new Place(await freePort(), 'workers: 2\nrate_limits: { enabled: false }\n');
    run = await place.start();
    await place.command('register-user', 'alice', '--password', PASSWORD);
    const login = await fetch(`${place.url}/_matrix/client/v3/login`, {
      method: 'POST',
      body: JSON.stringify({ type: 'm.login.password', user: 'alice', password: PASSWORD }),
    });
    token = ((await login.json()) as { access_token: string }).access_token;
  });
  after(() => place.remove());

  it('greet once, and say in the log who they are', () => {
    assert.equal(run.out.match(/Trellis is running/g)?.length, 1);
    assert.deepEqual(
      living(run)
        .map(({ worker }) => worker)
        .sort(),
      [1, 2],
    );
  });

  it('are replaced while clients ask and wait, without a failed request', async () => {
    const asking = new Asking(place.url, token);
    const { next_batch } = (await asking.ask('/_matrix/client/v3/sync')) as { next_batch: string };
    const waiting = asking.ask(`/_matrix/client/v3/sync?since=${next_batch}&timeout=60000`);
    const before = living(run).map(({ pid }) => pid);
    const { code, out } = await place.command('restart');
    assert.equal(code, 0, out);
    assert.match(out, /All are replaced/);
    assert.ok(await waiting);
    await asking.stop();
    assert.deepEqual(asking.failures, []);
    assert.ok(asking.answers > 50, `only ${asking.answers} answers`);
    assert.equal(living(run).length, 2);
    for (const pid of before) assert.ok(!isAlive(pid), `worker ${pid} is there still`);
  });

  it('stay when their successors cannot start', async () => {
    const config = readFileSync(place.config, 'utf8');
    const before = living(run);
    place.write(`${config}application_services: [missing.yaml]\n`);
    const { code, out } = await place.command('restart');
    place.write(config);
    assert.equal(code, 1);
    assert.match(out, /The old ones go on: .*missing\.yaml/s);
    assert.deepEqual(living(run), before);
  });

  it('are started again when they die, and the others serve', async () => {
    const [dying, staying] = living(run);
    process.kill(dying!.pid, 'SIGKILL');
    await until('the worker to be gone', () => !isAlive(dying!.pid));
    for (let i = 0; i < 8; i++) assert.equal(await place.login('alice', PASSWORD), 200);
    await until('another worker', () => living(run).length === 2);
    assert.ok(isAlive(staying!.pid));
  });

  it('end with their supervisor, and so does PostgreSQL', async () => {
    const { serverPid, postgresPid } = place;
    const workers = living(run);
    process.kill(serverPid, 'SIGKILL');
    assert.notEqual(await run.ended, 0);
    await until('all to end', () => !isAlive(postgresPid) && workers.every(({ pid }) => !isAlive(pid)));
    run = await place.start();
  });

  it('stop in good order, answering those who wait', async () => {
    const asking = new Asking(place.url, token);
    await asking.stop();
    const waiting = new Asking(place.url, token);
    const { next_batch } = (await waiting.ask('/_matrix/client/v3/sync')) as { next_batch: string };
    await waiting.stop();
    const sync = waiting.ask(`/_matrix/client/v3/sync?since=${next_batch}&timeout=60000`);
    await new Promise((wake) => setTimeout(wake, 200));
    const began = Date.now();
    process.kill(-run.child.pid!, 'SIGINT');
    assert.equal(await run.ended, 0, run.out);
    assert.ok(await sync, waiting.failures.join());
    assert.ok(Date.now() - began < 6_000, `it took ${Date.now() - began} ms`);
    assert.doesNotMatch(run.out, /"level":[56]0/);
  });

  it('say once what keeps them from starting', async () => {
    writeFileSync(
      place.config,
      `${readFileSync(place.config, 'utf8')}application_services: [missing.yaml]\n`,
    );
    const { code, out } = await place.command();
    assert.equal(code, 1);
    assert.equal(out.match(/missing\.yaml/g)?.length, 1, out);
  });

  it('are not there in a server of one process', async () => {
    const one = new Place(await freePort());
    await one.start();
    const { code, out } = await one.command('restart');
    await one.remove();
    assert.equal(code, 1);
    assert.match(out, /runs as one process/);
  });
});
