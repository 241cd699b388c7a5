import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { Client, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { PASSWORD, startServer, type TestServer } from './harness/server.ts';

const POLICIES = {
  terms_of_service: { version: '1.2', en: { name: 'Terms <of> Service', url: 'https://example.org/terms' } },
};

describe('authentication in a browser', () => {
  let server: TestServer;
  let riddles: Server;
  const solutions: Array<Record<string, string>> = [];
  before(async () => {
    riddles = createServer(async (incoming, response) => {
      let body = '';
      for await (const chunk of incoming) body += chunk;
      const given = Object.fromEntries(new URLSearchParams(body));
      solutions.push(given);
      response.end(JSON.stringify({ success: given.response === 'solved' }));
    });
    await new Promise<void>((done) => riddles.listen(0, '127.0.0.1', done));
    const { port } = riddles.address() as AddressInfo;
    const recaptcha = {
      public_key: 'site key',
      private_key: 'secret key',
      verify_url: `http://127.0.0.1:${port}/`,
    };
    server = await startServer({
      name: 'pages',
      config: { registration: { open: true, terms: POLICIES, recaptcha } },
    });
  });
  after(async () => {
    await server?.close();
    riddles?.close();
  });

  const post = (target: string, body: Json, accessToken?: string) =>
    request(server.url, 'POST', `/_matrix/client/v3/${target}`, {
      body,
      ...(accessToken !== undefined && { headers: { authorization: `Bearer ${accessToken}` } }),
    });
  const pageUrl = (stage: string, session: string) =>
    `${server.url}/_matrix/client/v3/auth/${stage}/fallback/web?session=${session}`;
  const submit = async (stage: string, session: string, fields: Record<string, string> = {}) => {
    const body = new URLSearchParams({ session, ...fields });
    const answer = await fetch(pageUrl(stage, session), { method: 'POST', body });
    return { status: answer.status, text: await answer.text(), headers: answer.headers };
  };

  it('asks who registers to accept the terms and to solve a riddle', async () => {
    const account = { username: 'plain', password: PASSWORD };
    const { body } = await post('register', account);
    assert.deepEqual(body.flows, [{ stages: ['m.login.recaptcha', 'm.login.terms'] }]);
    assert.deepEqual(body.params, {
      'm.login.recaptcha': { public_key: 'site key' },
      'm.login.terms': { policies: POLICIES },
    });
    const { session } = body;
    const stage = (auth: Json) => post('register', { ...account, auth: { ...auth, session } });
    const missing = await stage({ type: 'm.login.recaptcha' });
    assert.deepEqual([missing.status, missing.body.errcode], [401, 'M_CAPTCHA_NEEDED']);
    const wrong = await stage({ type: 'm.login.recaptcha', response: 'guessed' });
    assert.deepEqual([wrong.status, wrong.body.errcode], [401, 'M_CAPTCHA_INVALID']);
    const solved = await stage({ type: 'm.login.recaptcha', response: 'solved' });
    assert.deepEqual([solved.status, solved.body.completed], [401, ['m.login.recaptcha']]);
    assert.deepEqual(solutions.at(-1), { secret: 'secret key', response: 'solved' });
    assert.equal((await stage({ type: 'm.login.terms' })).status, 200);
  });

  it('has pages for the stages, which tell the client when they are done', async () => {
    const account = { username: 'pages', password: PASSWORD };
    const { session } = (await post('register', account)).body;
    const page = await fetch(pageUrl('m.login.terms', session));
    const html = await page.text();
    assert.match(page.headers.get('content-type')!, /^text\/html/);
    assert.match(html, /href="https:&#47;|href="https:\/\/example.org\/terms"/);
    assert.ok(html.includes('Terms &#60;of&#62; Service') && html.includes(session));
    assert.match(page.headers.get('content-security-policy')!, /frame-ancestors 'none'/);
    assert.match(
      await (await fetch(pageUrl('m.login.recaptcha', session))).text(),
      /data-sitekey="site key"/,
    );

    const failed = await submit('m.login.recaptcha', session, { 'g-recaptcha-response': 'guessed' });
    assert.equal(failed.status, 401);
    assert.ok(!failed.text.includes('onAuthDone'));
    const done = await submit('m.login.recaptcha', session, { 'g-recaptcha-response': 'solved' });
    assert.equal(done.status, 200);
    assert.match(done.text, /window\.onAuthDone\(\)[\s\S]*postMessage\("authDone", "\*"\)/);
    assert.match(done.headers.get('content-security-policy')!, /script-src 'sha256-/);
    assert.equal((await submit('m.login.terms', session)).status, 200);
    const made = await post('register', { ...account, auth: { session } });
    assert.equal(made.body.user_id, `@pages:${server.serverName}`);
  });

  it('confirms a password there, that of the user only', async () => {
    const [dave, other] = [await registered('dave'), await registered('other')];
    const challenge = await post('delete_devices', { devices: [dave.deviceId] }, dave.accessToken);
    const { session } = challenge.body;
    const foreign = await submit('m.login.password', session, { user: 'other', password: PASSWORD });
    assert.equal(foreign.status, 401);
    assert.ok(other.userId);
    const wrong = await submit('m.login.password', session, { user: 'dave', password: 'guessed<b>' });
    assert.equal(wrong.status, 401);
    assert.equal(
      (await submit('m.login.password', session, { user: 'dave', password: PASSWORD })).status,
      200,
    );
    const request = { devices: [dave.deviceId], auth: { session } };
    assert.equal((await post('delete_devices', request, dave.accessToken)).status, 200);
  });

  it('has none for other stages, nor without a session that is there', async () => {
    assert.equal((await fetch(pageUrl('m.login.magic', 'x'))).status, 404);
    assert.equal((await fetch(pageUrl('m.login.terms', ''))).status, 400);
    assert.equal((await submit('m.login.terms', 'unknown')).status, 401);
  });

  it('has a page for logging in', async () => {
    const page = await fetch(`${server.url}/_matrix/static/client/login/?device_id=X`);
    assert.equal(page.status, 200);
    const html = await page.text();
    assert.match(html, /window\.matrixLogin\.onLogin\(response\)/);
    assert.match(html, /type: "m\.login\.password"/);
    assert.match(page.headers.get('content-security-policy')!, /script-src 'sha256-.*connect-src 'self'/);
  });

  async function registered(username: string): Promise<Client> {
    const account = { username, password: PASSWORD };
    const { session } = (await post('register', account)).body;
    await submit('m.login.recaptcha', session, { 'g-recaptcha-response': 'solved' });
    await submit('m.login.terms', session);
    return new Client(server.url, (await post('register', { ...account, auth: { session } })).body);
  }
});
