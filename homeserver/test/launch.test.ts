import assert from 'node:assert/strict';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { freePort, isAlive, LAUNCH, Place, type Run, until } from './place.ts';

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

  it('shows and checks rooms beside the running server, which rebuilds them when it is asked to', async () => {
    const password = 'correct horse battery';
    await place.command('register-user', 'keeper', '--admin', '--password', password);
    await place.command('register-user', 'guest', '--password', password);
    const call = async (method: string, path: string, token?: string, body?: object) => {
      const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
      const answer = await fetch(place.url + path, { method, headers, body: body && JSON.stringify(body) });
      return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
    };
    const tokenOf = async (user: string) => {
      const login = { type: 'm.login.password', user, password };
      return String((await call('POST', '/_matrix/client/v3/login', undefined, login)).body.access_token);
    };
    const [keeper, guest] = [await tokenOf('keeper'), await tokenOf('guest')];
    const made = await call('POST', '/_matrix/client/v3/createRoom', guest, { preset: 'public_chat' });
    const roomId = String(made.body.room_id);

    const shown = JSON.parse((await place.command('room', roomId)).out);
    assert.deepEqual([shown.room_id, shown.members.join, shown.extremities.length], [roomId, 1, 1]);
    assert.equal(JSON.parse((await place.command('room', roomId, '--check')).out).sound, true);
    const refused = await place.command('room', roomId, '--rebuild');
    assert.equal(refused.code, 1);
    assert.match(refused.out, /while the server runs/);
    assert.match((await place.command('room', '!nowhere:x')).out, /Unknown room/);

    const base = `/_trellis/admin/v1/rooms/${encodeURIComponent(roomId)}/graph`;
    assert.equal((await call('GET', base, guest)).status, 403);
    assert.equal((await call('POST', `${base}/rebuild`, guest, {})).status, 403);
    assert.equal((await call('GET', base, keeper)).body.room_id, roomId);
    assert.equal((await call('POST', `${base}/check`, keeper, {})).body.sound, true);
    assert.equal((await call('POST', `${base}/rebuild`, keeper, {})).body.sound, true);
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
