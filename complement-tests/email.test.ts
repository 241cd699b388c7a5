import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { MailServer } from './harness/mail-server.ts';
import { freePort } from './harness/ports.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

const V3 = '/_matrix/client/v3';

describe('addresses of accounts', () => {
  let mail: MailServer;
  let sms: Server;
  const texts: Json[] = [];
  let server: TestServer;
  let alice: Client;

  before(async () => {
    mail = new MailServer(await freePort());
    await mail.start();
    const smsPort = await freePort();
    sms = createServer((incoming, response) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('end', () => {
        texts.push({ ...JSON.parse(Buffer.concat(chunks).toString()), key: incoming.headers['x-key'] });
        response.end('{}');
      });
    });
    await new Promise<void>((done) => sms.listen(smsPort, '127.0.0.1', done));
    server = await startServer({
      name: 'email',
      config: {
        email: { ...mail.config, notification_delay_ms: 1_000, client_url: 'https://client.test' },
        sms: {
          url: `http://127.0.0.1:${smsPort}/send`,
          headers: { 'x-key': 'k' },
          body: { recipient: ['{number}'], message: '{text}' },
        },
      },
    });
    alice = await server.register('alice');
  });
  after(async () => {
    await server.close();
    await mail.close();
    sms.close();
  });

  let attempts = 0;
  const ask = async (target: string, address: string, client_secret: string): Promise<Json> => {
    attempts += 1;
    const body = { client_secret, email: address, send_attempt: attempts };
    return request(server.url, 'POST', `${V3}/${target}/email/requestToken`, { body });
  };
  const linkIn = (text: string) => new URL(/https?:\/\/\S+submit_token\S*/.exec(text)![0]);
  /** Presses the button of the page that the link leads to. */
  const confirm = async (link: URL): Promise<Response> => {
    const seen = await fetch(link);
    assert.equal(seen.status, 200);
    assert.match(await seen.text(), /<form method="post"/);
    return fetch(link.origin + link.pathname, {
      method: 'POST',
      body: new URLSearchParams(link.search),
      redirect: 'manual',
    });
  };
  const uia = (stage: object) => ({ auth: { ...stage } });
  const password = uia({
    type: 'm.login.password',
    identifier: { type: 'm.id.user', user: 'alice' },
    password: PASSWORD,
  });

  it('are added once their owner followed the link in the mail', async () => {
    assert.equal((await alice.get('/v3/capabilities')).capabilities['m.3pid_changes'].enabled, true);
    const { body } = await ask('account/3pid', 'Alice@Example.org', 'add1');
    assert.match(body.sid, /^[0-9a-zA-Z.=_-]{1,255}$/);
    const add = { client_secret: 'add1', sid: body.sid, ...password };
    const received = await mail.next('to confirm', 'alice@example.org');
    assert.match(received.text, /Content-Type: text\/html/i);
    const link = linkIn(received.text);
    await fetch(link);
    await refused(alice.post('/v3/account/3pid/add', add), 400, 'M_THREEPID_AUTH_FAILED');
    const wrong = new URL(link);
    wrong.searchParams.set('token', 'wrong');
    assert.equal((await confirm(wrong)).status, 400);
    assert.equal((await confirm(link)).status, 200);
    await refused(alice.post('/v3/account/3pid/add', { ...add, auth: undefined }), 401);
    assert.deepEqual(await alice.post('/v3/account/3pid/add', add), {});
    const [threepid] = (await alice.get('/v3/account/3pid')).threepids;
    assert.deepEqual([threepid.medium, threepid.address], ['email', 'alice@example.org']);
  });

  it('are good to log in with', async () => {
    const again = await request(server.url, 'POST', `${V3}/login`, {
      body: {
        type: 'm.login.password',
        identifier: { type: 'm.id.thirdparty', medium: 'email', address: 'ALICE@example.org' },
        password: PASSWORD,
      },
    });
    assert.equal(again.body.user_id, alice.userId);
  });

  it('show nobody else that they are taken', async () => {
    const taken = await ask('register', 'alice@example.org', 'reg1');
    assert.equal(taken.status, 200);
    assert.match((await mail.next('in use', 'alice@example.org')).text, /an account already/);
    const unknown = await ask('account/password', 'nobody@example.org', 'pw0');
    assert.equal(unknown.status, 200);
    assert.match((await mail.next('unknown', 'nobody@example.org')).text, /no account/);
    assert.deepEqual(Object.keys(taken.body), Object.keys(unknown.body));
  });

  it('register with an account, and lead on from the link', async () => {
    const body = {
      client_secret: 'reg2',
      email: 'carol@example.org',
      send_attempt: 1,
      next_link: 'https://app.test/x',
    };
    const { sid } = (
      await request(server.url, 'POST', `${V3}/register/email/requestToken`, {
        body,
      })
    ).body;
    const auth = { type: 'm.login.email.identity', threepid_creds: { sid, client_secret: 'reg2' } };
    const register = (more: object) =>
      request(server.url, 'POST', `${V3}/register`, {
        body: { username: 'carol', password: PASSWORD, auth: { ...auth, ...more } },
      });
    const first = await register({});
    assert.equal(first.status, 401);
    assert.ok(first.body.flows.some((flow: Json) => flow.stages.includes('m.login.email.identity')));
    const answer = await confirm(linkIn((await mail.next('to register', 'carol@example.org')).text));
    assert.deepEqual([answer.status, answer.headers.get('location')], [303, 'https://app.test/x']);
    const made = await register({ session: first.body.session });
    assert.equal(made.status, 200, JSON.stringify(made.body));
    const token = made.body.access_token;
    const { threepids } = (await request(server.url, 'GET', `${V3}/account/3pid`, { token })).body;
    assert.equal(threepids[0].address, 'carol@example.org');
  });

  it('set a new password', async () => {
    const { sid } = (await ask('account/password', 'alice@example.org', 'pw1')).body;
    const creds = { sid, client_secret: 'pw1' };
    const change = () =>
      request(server.url, 'POST', `${V3}/account/password`, {
        body: {
          new_password: 'another good one',
          ...uia({ type: 'm.login.email.identity', threepid_creds: creds }),
        },
      });
    assert.equal((await change()).status, 401);
    await confirm(linkIn((await mail.next('new password', 'alice@example.org')).text));
    assert.equal((await change()).status, 200);
    alice = await login(server.url, 'alice', { password: 'another good one' });
    // The session was good for that once.
    assert.equal((await change()).status, 401);
  });

  it('get notifications by mail until they want no more, or are removed', async () => {
    const bob = await server.register('bob');
    await bob.put(path`/v3/profile/${bob.userId}/displayname`, { displayname: 'Bob' });
    const room = await bob.createRoom({ preset: 'public_chat', name: 'Garden' });
    await alice.join(room);
    const pusher = {
      kind: 'email',
      app_id: 'm.email',
      pushkey: 'alice@example.org',
      app_display_name: 'Mail',
      device_display_name: 'Mail',
      lang: 'en',
      data: {},
    };
    await alice.post('/v3/pushers/set', pusher);
    await bob.sendText(room, 'roses');
    const received = await mail.next('a notification', 'alice@example.org');
    assert.match(received.text, /Subject: Message from Bob in Garden/);
    assert.match(received.text, /roses/);
    const stop = /List-Unsubscribe: <([^>]+)>/.exec(received.text.replaceAll(/\r\n\s+/g, ' '))![1]!;
    assert.equal((await fetch(stop.replaceAll(' ', ''))).status, 200);
    assert.equal((await alice.get('/v3/pushers')).pushers.length, 1);
    await fetch(stop.replaceAll(' ', ''), { method: 'POST', body: 'List-Unsubscribe=One-Click' });
    assert.deepEqual(await alice.get('/v3/pushers'), { pushers: [] });
    await alice.post('/v3/pushers/set', pusher);
    await alice.post('/v3/account/3pid/delete', { medium: 'email', address: 'alice@example.org' });
    assert.deepEqual(await alice.get('/v3/pushers'), { pushers: [] });
    assert.deepEqual(await alice.get('/v3/account/3pid'), { threepids: [] });
  });

  it('may be phone numbers, confirmed by a code', async () => {
    const body = { client_secret: 'sms', country: 'GB', phone_number: '07700 900001', send_attempt: 1 };
    const { sid, submit_url } = await alice.post('/v3/account/3pid/msisdn/requestToken', body);
    const text = await eventually('a text message', async () => texts.shift());
    assert.deepEqual([text.recipient, text.key], [['+447700900001'], 'k']);
    const token = /^\d{6}/.exec(text.message)![0];
    const submit = async (code: string) => {
      const answer = await fetch(submit_url, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ sid, client_secret: 'sms', token: code }),
      });
      return (await answer.json()) as Json;
    };
    assert.equal((await submit('x')).errcode, 'M_TOKEN_INCORRECT');
    assert.deepEqual(await submit(token), { success: true });
    await alice.post('/v3/account/3pid/add', {
      sid,
      client_secret: 'sms',
      ...uia({ ...password.auth, password: 'another good one' }),
    });
    const byPhone = await request(server.url, 'POST', `${V3}/login`, {
      body: {
        type: 'm.login.password',
        identifier: { type: 'm.id.phone', country: 'GB', phone: '07700900001' },
        password: 'another good one',
      },
    });
    assert.equal(byPhone.body.user_id, alice.userId);
    for (const purpose of ['register', 'account/password']) {
      const other = { ...body, client_secret: 'sms2', phone_number: '07700 900002' };
      const { body: begun } = await request(server.url, 'POST', `${V3}/${purpose}/msisdn/requestToken`, {
        body: purpose === 'register' ? other : body,
      });
      assert.ok(begun.sid, JSON.stringify(begun));
    }
    const nonsense = { ...body, phone_number: 'nonsense' };
    await refused(alice.post('/v3/account/3pid/msisdn/requestToken', nonsense), 400, 'M_INVALID_PARAM');
  });
});

describe('identity servers', () => {
  it('are not trusted: nothing is bound there, and so nothing is unbound', async () => {
    const server = await startServer({ name: 'no-identity-server' });
    try {
      const alice = await server.register('alice');
      const id_server = 'identity.example';
      const proof = { sid: 'x', client_secret: 'x', id_server, id_access_token: 'x' };
      await refused(alice.post('/v3/account/3pid/bind', proof), 400, 'M_SERVER_NOT_TRUSTED');
      await refused(
        alice.post('/v3/account/3pid', { three_pid_creds: proof }),
        403,
        'M_THREEPID_AUTH_FAILED',
      );
      const address = { medium: 'email', address: 'alice@example.org', id_server };
      const unbound = await alice.post('/v3/account/3pid/unbind', address);
      assert.deepEqual(unbound, { id_server_unbind_result: 'no-support' });
    } finally {
      await server.close();
    }
  });
});

describe('registration that requires an address', () => {
  it('asks for one, and for nothing less', async () => {
    const mail = new MailServer(await freePort());
    await mail.start();
    const server = await startServer({
      name: 'email-required',
      config: { email: mail.config, registration: { require_email: true } },
    });
    try {
      const register = (auth?: object) =>
        request(server.url, 'POST', `${V3}/register`, {
          body: { username: 'x', password: PASSWORD, auth },
        });
      const { status, body } = await register({ type: 'm.login.dummy' });
      assert.equal(status, 401);
      assert.deepEqual(body.flows, [{ stages: ['m.login.email.identity'] }]);
    } finally {
      await server.close();
      await mail.close();
    }
  });
});
