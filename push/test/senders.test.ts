import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, describe, it } from 'node:test';
import type { Verification } from '@trellis/users/threepid-sessions.ts';
import { SMTPServer } from 'smtp-server';
import { Mailer, type MailerConfig } from '../mailer.ts';
import { smsSender } from '../sms.ts';
import { verificationMail } from '../verification-mail.ts';

describe('mail', () => {
  const received: Array<{ from: string; to: string[]; data: string; isSecure: boolean }> = [];
  const smtp = new SMTPServer({
    // With the certificate that the library brings for tests.
    onAuth: ({ username, password }, _session, done) =>
      username === 'user' && password === 'pass' ? done(null, { user: 'user' }) : done(new Error('no')),
    onData: (stream, { envelope, secure }, done) => {
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () => {
        received.push({
          from: envelope.mailFrom ? envelope.mailFrom.address : '',
          to: envelope.rcptTo.map(({ address }) => address),
          data: Buffer.concat(chunks).toString(),
          isSecure: secure,
        });
        done();
      });
    },
  });
  after(() => new Promise<void>((done) => smtp.close(() => done())));
  const mailerFor = async (more: Partial<MailerConfig['smtp']> = {}) => {
    if (!smtp.server.listening) await new Promise<void>((done) => smtp.listen(0, '127.0.0.1', done));
    const { port } = smtp.server.address() as AddressInfo;
    const mailer = new Mailer({
      from: 'Trellis <matrix@example.org>',
      smtp: {
        host: '127.0.0.1',
        port,
        security: 'starttls',
        username: 'user',
        password: 'pass',
        verify_tls: false,
        ...more,
      },
    });
    after(() => mailer.close());
    return mailer;
  };
  const confirm: Verification = {
    kind: 'confirm',
    purpose: 'register',
    address: 'new@example.org',
    sid: 'SID',
    clientSecret: 'a=b.c',
    token: 'TOKEN',
  };
  const options = { serverName: 'example.org', submitUrl: 'https://example.org/confirm' };

  it('goes out over TLS with a text and a page', async () => {
    await (await mailerFor()).send(verificationMail(confirm, options));
    const [mail] = received.splice(0);
    assert.deepEqual(
      [mail!.from, mail!.to, mail!.isSecure],
      ['matrix@example.org', ['new@example.org'], true],
    );
    const text = mail!.data.replaceAll('=\r\n', '').replaceAll('=3D', '=');
    assert.match(text, /^Subject: Confirm your e-mail address\r$/m);
    assert.match(text, /https:\/\/example\.org\/confirm\?sid=SID&client_secret=a%3Db\.c&token=TOKEN\r$/m);
    assert.match(text, /Content-Type: text\/plain/);
    assert.match(text, /href="https:\/\/example\.org\/confirm\?sid=SID&amp;client_secret/);
    assert.match(text, /Auto-Submitted: auto-generated/);
  });

  it('has one receiver, whatever an address looks like', async () => {
    const mailer = await mailerFor();
    const mail = verificationMail({ ...confirm, address: 'a@example.org, b@example.org' }, options);
    await mailer.send(mail).catch(() => {});
    assert.ok(received.splice(0).every(({ to }) => to.length === 1));
  });

  it('is refused where the other side cannot be trusted', async () => {
    const wrong = await mailerFor({ password: 'wrong' });
    await assert.rejects(wrong.send(verificationMail(confirm, options)));
    const strict = await mailerFor({ verify_tls: true });
    await assert.rejects(strict.send(verificationMail(confirm, options)));
    assert.deepEqual(received, []);
  });
});

describe('text messages', () => {
  const bodies: string[] = [];
  let status = 200;
  const gateway = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      bodies.push(`${request.headers['content-type']} ${Buffer.concat(chunks)}`);
      response.writeHead(status).end();
    });
  });
  after(() => gateway.close());
  const sender = async (form: boolean) => {
    if (!gateway.listening) await new Promise<void>((done) => gateway.listen(0, '127.0.0.1', done));
    const url = `http://127.0.0.1:${(gateway.address() as AddressInfo).port}/`;
    return smsSender({ url, headers: {}, body: { To: '{number}', Text: '{text}' }, form }, 'example.org');
  };
  const address = '447700900001';

  it('go to the gateway as a form or as JSON', async () => {
    const code = {
      kind: 'confirm',
      purpose: 'add',
      address,
      sid: 's',
      clientSecret: 'c',
      token: '123456',
    } as const;
    await (await sender(false))(code);
    await (await sender(true))(code);
    assert.match(bodies[0]!, /^application\/json \{"To":"\+447700900001","Text":"123456 is your code/);
    assert.match(bodies[1]!, /^application\/x-www-form-urlencoded To=%2B447700900001&Text=123456\+is/);
  });

  it('do not go to strangers, and say when they do not go out', async () => {
    const count = bodies.length;
    await (await sender(false))({ kind: 'unknown', purpose: 'password', address });
    assert.equal(bodies.length, count);
    status = 500;
    await assert.rejects((await sender(false))({ kind: 'in-use', purpose: 'add', address }), /500/);
  });
});
