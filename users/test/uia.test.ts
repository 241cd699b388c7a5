import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { RegistrationTokens } from '../registration-tokens.ts';
import { Uia, UiaChallenge, type UiaRequest } from '../uia.ts';
import type { Stage } from '../uia-stages.ts';
import { accountsOn, databaseForFile, PASSWORD } from './fixture.ts';

const db = await databaseForFile();
const accounts = accountsOn(db, { failedLogins: { perSecond: 1000, burst: 1000 } });
const registrationTokens = new RegistrationTokens(db);
const uia = new Uia({ db, accounts, registrationTokens });
const alice = (await accounts.create({ localpart: 'alice', password: PASSWORD })).userId;
await accounts.create({ localpart: 'bob', password: PASSWORD });

const DUMMY: Stage[][] = [['m.login.dummy']];
const request = (body: unknown, more: Partial<UiaRequest> = {}): UiaRequest => ({
  endpoint: 'POST /x',
  body,
  userId: undefined,
  ...more,
});
const password = (user: string, word: string, session?: string) => ({
  type: 'm.login.password',
  identifier: { type: 'm.id.user', user },
  password: word,
  ...(session && { session }),
});

interface Challenge {
  session: string;
  flows: Array<{ stages: string[] }>;
  completed?: string[];
  errcode?: string;
}

async function challenge(promise: Promise<unknown>): Promise<Challenge> {
  const error = await promise.then(
    () => assert.fail('went through'),
    (error: unknown) => error,
  );
  assert.ok(error instanceof UiaChallenge, String(error));
  assert.equal(error.status, 401);
  return error.toBody() as unknown as Challenge;
}

describe('user-interactive authentication', () => {
  it('first tells what is asked, without calling it an error', async () => {
    const { session, flows, ...rest } = await challenge(uia.complete(request({ a: 1 }), DUMMY));
    assert.ok(session);
    assert.deepEqual(flows, [{ stages: ['m.login.dummy'] }]);
    assert.deepEqual(rest, { params: {} });
  });

  it('takes a stage with the first request', async () => {
    await uia.complete(request({ a: 1, auth: { type: 'm.login.dummy' } }), DUMMY);
  });

  it('goes through a flow of several stages, in any order, and remembers what they found', async () => {
    await registrationTokens.create({ token: 'invite' });
    const flows: Stage[][] = [['m.login.registration_token', 'm.login.dummy']];
    const { session } = await challenge(uia.complete(request({ a: 1 }), flows));
    const dummy = { a: 1, auth: { type: 'm.login.dummy', session } };
    assert.deepEqual((await challenge(uia.complete(request(dummy), flows))).completed, ['m.login.dummy']);
    // A completed stage is not tried again, and the session alone asks how far it has come.
    assert.deepEqual((await challenge(uia.complete(request(dummy), flows))).completed, ['m.login.dummy']);
    const asked = await challenge(uia.complete(request({ a: 1, auth: { session } }), flows));
    assert.deepEqual(asked.completed, ['m.login.dummy']);
    const auth = { type: 'm.login.registration_token', token: 'invite', session };
    const outcome = await uia.complete(request({ a: 1, auth }), flows);
    assert.equal(outcome.registrationToken, 'invite');
    await assert.rejects(uia.complete(request({ a: 1, auth }), flows), UiaChallenge);
  });

  it('lets a wrong password be corrected', async () => {
    const ask = (auth: object) => uia.confirmPassword(request({ auth }, { userId: alice }));
    const first = await challenge(ask(password('alice', 'wrong')));
    assert.deepEqual([first.errcode, first.completed], ['M_FORBIDDEN', undefined]);
    const outcome = await ask(password('alice', PASSWORD, first.session));
    assert.equal(outcome.passwordUserId, alice);
  });

  it("does not take somebody else's password, nor one for nobody", async () => {
    const ask = (auth: object) => uia.confirmPassword(request({ auth }, { userId: alice }));
    await assert.rejects(ask(password('bob', PASSWORD)), { errcode: 'M_FORBIDDEN', status: 403 });
    await assert.rejects(ask({ type: 'm.login.password', password: PASSWORD }), { status: 403 });
    for (const odd of [undefined, 7, null, [], '']) {
      const auth = { ...password('alice', ''), password: odd };
      assert.equal((await challenge(ask(auth))).errcode, 'M_FORBIDDEN');
    }
  });

  it('confirms only what was asked, by whom and where', async () => {
    const start = { userId: alice };
    const { session } = await challenge(uia.confirmPassword(request({ devices: ['A'] }, start)));
    const auth = password('alice', PASSWORD, session);
    for (const other of [
      request({ devices: ['B'], auth }, start),
      request({ devices: ['A'], auth }, { ...start, endpoint: 'POST /y' }),
      request({ devices: ['A'], auth }, { userId: undefined }),
    ])
      await assert.rejects(uia.complete(other, [['m.login.password']]), { status: 403 });
    await uia.confirmPassword(request({ devices: ['A'], auth }, start));
  });

  it('may begin with an empty request, and does not care for the order of members', async () => {
    const { session } = await challenge(uia.complete(request({}), DUMMY));
    await challenge(uia.complete(request({ a: { x: 1, y: 2 }, b: 3, auth: { session } }), DUMMY));
    const auth = { type: 'm.login.dummy', session };
    await uia.complete(request({ b: 3, a: { y: 2, x: 1 }, auth }), DUMMY);
  });

  it('is good for one action, also when two come at a time', async () => {
    const { session } = await challenge(uia.complete(request({}), DUMMY));
    const auth = { type: 'm.login.dummy', session };
    const results = await Promise.allSettled([1, 2, 3].map(() => uia.complete(request({ auth }), DUMMY)));
    assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1);
  });

  it('starts anew for sessions that are unknown or over', async () => {
    const brief = new Uia({ db, accounts, registrationTokens, lifetimeMs: -1 });
    const { session } = await challenge(brief.complete(request({}), DUMMY));
    for (const id of [session, 'forged', 'x'.repeat(24), 7]) {
      const auth = { type: 'm.login.dummy', session: id };
      const fresh = await challenge(uia.complete(request({ auth }), DUMMY));
      assert.notEqual(fresh.session, id);
      assert.ok(fresh.errcode);
    }
  });

  it('stores no password', async () => {
    const body = { new_password: 'sesame-1', password: 'sesame-2' };
    const { session } = await challenge(uia.complete(request(body), DUMMY));
    const rows = await db.query('SELECT * FROM uia_sessions WHERE session_id = $1', [session]);
    assert.deepEqual([rows.length, rows[0]!.params_hash], [1, null]);
  });

  it('refuses stages outside the flows', async () => {
    const { errcode } = await challenge(uia.complete(request({ auth: password('alice', PASSWORD) }), DUMMY));
    assert.equal(errcode, 'M_INVALID_PARAM');
  });

  it('is refused to accounts without a password', async () => {
    const { userId } = await accounts.create({ localpart: 'bridge' });
    await assert.rejects(uia.confirmPassword(request({}, { userId })), { status: 403 });
  });
});
