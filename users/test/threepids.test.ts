import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { canonicalEmail, canonicalPhone } from '../threepid-address.ts';
import { ThreepidSessions, type Verification, type VerificationRequest } from '../threepid-sessions.ts';
import { Threepids } from '../threepids.ts';
import { accountsOn, databaseForFile, PASSWORD } from './fixture.ts';

const db = await databaseForFile();
const accounts = accountsOn(db);
const threepids = new Threepids(db);
const alice = (await accounts.create({ localpart: 'alice', password: PASSWORD })).userId;
const bob = (await accounts.create({ localpart: 'bob', password: PASSWORD })).userId;

const sent: Verification[] = [];
let fails = false;
const send = async (verification: Verification) => {
  if (fails) throw new Error('no connection');
  sent.push(verification);
};
const sessionsWith = (burst: number, lifetimeMs?: number) =>
  new ThreepidSessions({
    db,
    accounts,
    senders: { email: send, msisdn: send },
    rate: { perSecond: 0.001, burst },
    ...(lifetimeMs !== undefined && { lifetimeMs }),
  });
const sessions = sessionsWith(1000);

const requestOf = (more: Partial<VerificationRequest> = {}): VerificationRequest => ({
  medium: 'email',
  address: 'new@example.org',
  purpose: 'add',
  clientSecret: 'secret',
  sendAttempt: 1,
  nextLink: undefined,
  ...more,
});
const lastToken = () => {
  const last = sent.at(-1)!;
  assert.ok(last.kind === 'confirm');
  return last.token;
};

describe('addresses', () => {
  it('have one form whatever their case', () => {
    assert.equal(canonicalEmail(' Strauß@Example.COM '), 'strauss@example.com');
    assert.equal(canonicalEmail('a+b.c@x.org'), 'a+b.c@x.org');
    // A letter that only looks alike, though its capital is that of i, is another person's.
    assert.notEqual(canonicalEmail('mıke@example.org'), 'mike@example.org');
    for (const wrong of [
      '',
      'a',
      '@b',
      'a@',
      'a b@c',
      'a@b@c',
      'a@b,c@d',
      'A <a@b>',
      'a@b\n',
      'x'.repeat(300),
    ])
      assert.equal(canonicalEmail(`${wrong}\u0001`), undefined, wrong);
    for (const wrong of ['', 'a', '@b', 'a@', 'a b@c', 'a@b@c', 'a@b,c@d', 'A <a@b>', `${'x'.repeat(300)}@b`])
      assert.equal(canonicalEmail(wrong), undefined, wrong);
  });

  it('of phones are as they are dialled from a country', () => {
    assert.equal(canonicalPhone('GB', '07700 900001'), '447700900001');
    assert.equal(canonicalPhone('de', '+44 7700 900001'), '447700900001');
    for (const [country, number] of [
      ['XX', '07700900001'],
      ['GB', 'nonsense'],
      ['GB', '1'],
      ['GB', '7'.repeat(100)],
    ] as const)
      assert.equal(canonicalPhone(country, number), undefined, number);
  });
});

describe('sessions', () => {
  it('send once for each attempt, and confirm by what was sent', async () => {
    const sid = await sessions.request(requestOf({ nextLink: 'https://x.test/' }));
    const first = lastToken();
    assert.equal(await sessions.request(requestOf()), sid);
    assert.equal(sent.length, 1);
    assert.equal(await sessions.request(requestOf({ sendAttempt: 2, nextLink: 'https://x.test/' })), sid);
    assert.equal(sent.length, 2);
    await assert.rejects(sessions.submit(sid, 'secret', first), { errcode: 'M_TOKEN_INCORRECT' });
    await assert.rejects(sessions.submit(sid, 'other', lastToken()), { errcode: 'M_SESSION_EXPIRED' });
    assert.equal(await sessions.validated('email', 'add', sid, 'secret'), undefined);
    assert.equal(await sessions.submit(sid, 'secret', lastToken()), 'https://x.test/');
    const found = await sessions.validated('email', 'add', sid, 'secret');
    assert.equal(found?.address, 'new@example.org');
    for (const [medium, purpose, id, secret] of [
      ['msisdn', 'add', sid, 'secret'],
      ['email', 'password', sid, 'secret'],
      ['email', 'add', 'x', 'secret'],
      ['email', 'add', sid, 'other'],
      ['email', 'add', undefined, 7],
    ] as const)
      assert.equal(await sessions.validated(medium, purpose, id, secret), undefined);
    await sessions.end(sid);
    assert.equal(await sessions.validated('email', 'add', sid, 'secret'), undefined);
  });

  it('allow few guesses', async () => {
    const request = requestOf({ medium: 'msisdn', address: '447700900001' });
    const sid = await sessions.request(request);
    const right = lastToken();
    assert.match(right, /^\d{6}$/);
    const wrong = right === '000000' ? '000001' : '000000';
    for (let i = 0; i < 5; i++)
      await assert.rejects(sessions.submit(sid, 'secret', wrong), { errcode: 'M_TOKEN_INCORRECT' });
    await assert.rejects(sessions.submit(sid, 'secret', right), { errcode: 'M_TOKEN_INCORRECT' });
    await sessions.request({ ...request, sendAttempt: 2 });
    await sessions.submit(sid, 'secret', lastToken());
  });

  it('tell the owner of an address, not whoever asks, that it is in use or unknown', async () => {
    await threepids.add(alice, { medium: 'email', address: 'alice@example.org', validatedTs: 1 });
    for (const [purpose, address, kind] of [
      ['register', 'alice@example.org', 'in-use'],
      ['add', 'alice@example.org', 'in-use'],
      ['password', 'nobody@example.org', 'unknown'],
      ['password', 'alice@example.org', 'confirm'],
    ] as const) {
      const sid = await sessions.request(requestOf({ purpose, address, clientSecret: kind }));
      assert.match(sid, /^[0-9a-zA-Z.=_-]+$/);
      assert.equal(sent.at(-1)!.kind, kind);
      if (kind === 'confirm') continue;
      for (const token of ['', 'null', 'x'])
        await assert.rejects(sessions.submit(sid, kind, token), { errcode: 'M_TOKEN_INCORRECT' });
    }
  });

  it('send again after a failure, not more than so often, and run out', async () => {
    const request = requestOf({ address: 'often@example.org' });
    fails = true;
    const few = sessionsWith(3);
    await assert.rejects(few.request(request), { status: 502 });
    fails = false;
    const count = sent.length;
    await few.request(request);
    assert.equal(sent.length, count + 1);
    await few.request({ ...request, clientSecret: 'another' });
    const refused = few.request({ ...request, clientSecret: 'third' });
    await assert.rejects(refused, { errcode: 'M_LIMIT_EXCEEDED' });
    const short = sessionsWith(10, 20);
    const sid = await short.request(requestOf({ address: 'late@example.org' }));
    await new Promise((wake) => setTimeout(wake, 40));
    await assert.rejects(short.submit(sid, 'secret', lastToken()), { errcode: 'M_SESSION_EXPIRED' });
  });
});

describe('identifiers of accounts', () => {
  it('are of one account, and go by their owner only', async () => {
    const removed: string[] = [];
    threepids.onRemoved(async (userId, { address }) => void removed.push(`${userId} ${address}`));
    const address = 'shared@example.org';
    await threepids.add(alice, { medium: 'email', address, validatedTs: 1 });
    await threepids.add(alice, { medium: 'email', address, validatedTs: 2 });
    await assert.rejects(threepids.add(bob, { medium: 'email', address, validatedTs: 1 }), {
      errcode: 'M_THREEPID_IN_USE',
    });
    await assert.rejects(threepids.requireFree([{ medium: 'email', address }]), {
      errcode: 'M_THREEPID_IN_USE',
    });
    assert.equal(await threepids.remove(bob, 'email', address), false);
    assert.equal(await threepids.remove(alice, 'email', 'SHARED@example.org'), true);
    assert.deepEqual(removed, [`${alice} ${address}`]);
    await threepids.requireFree([{ medium: 'email', address }]);
  });
});
