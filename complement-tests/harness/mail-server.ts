import { SMTPServer } from 'smtp-server';

export interface ReceivedMail {
  to: string[];
  /** With the transfer encoding undone. */
  text: string;
}

/** A server for outgoing mail that keeps what it is given. */
export class MailServer {
  readonly mails: ReceivedMail[] = [];
  private readonly server: SMTPServer;
  readonly port: number;

  constructor(port: number) {
    this.port = port;
    this.server = new SMTPServer({
      secure: false,
      disabledCommands: ['STARTTLS'],
      allowInsecureAuth: true,
      onAuth: ({ username, password }, _session, done) =>
        username === 'matrix' && password === 'secret'
          ? done(null, { user: username })
          : done(new Error('wrong password')),
      onData: (stream, session, done) => {
        const chunks: Buffer[] = [];
        stream.on('data', (chunk: Buffer) => chunks.push(chunk));
        stream.on('end', () => {
          const to = session.envelope.rcptTo.map(({ address }) => address);
          this.mails.push({ to, text: decoded(Buffer.concat(chunks).toString()) });
          done();
        });
      },
    });
  }

  async start(): Promise<void> {
    await new Promise<void>((done) => this.server.listen(this.port, '127.0.0.1', done));
  }

  /** What the server under test needs to know. */
  get config(): object {
    return {
      from: 'Test <matrix@example.org>',
      smtp: {
        host: '127.0.0.1',
        port: this.port,
        security: 'none',
        username: 'matrix',
        password: 'secret',
      },
    };
  }

  async next(what: string, to: string, limitMs = 15_000): Promise<ReceivedMail> {
    const end = Date.now() + limitMs;
    for (;;) {
      const index = this.mails.findIndex((mail) => mail.to.includes(to));
      if (index >= 0) return this.mails.splice(index, 1)[0]!;
      if (Date.now() > end) throw new Error(`no mail to ${to}: ${what}`);
      await new Promise((wake) => setTimeout(wake, 50));
    }
  }

  async close(): Promise<void> {
    await new Promise<void>((done) => this.server.close(() => done()));
  }
}

/** Undoes quoted-printable in the parts that are: enough to read mails in English. */
function decoded(source: string): string {
  const parts = source.split(/^(?=--\S)/m);
  return parts
    .map((part) => {
      const body = part.indexOf('\r\n\r\n');
      const headers = part.slice(0, body);
      if (!/^content-transfer-encoding: *quoted-printable/im.test(headers)) return part;
      return headers + undone(part.slice(body));
    })
    .join('');
}

function undone(body: string): string {
  return body
    .replaceAll('=\r\n', '')
    .replace(/=([0-9A-F]{2})/g, (_all, code: string) => String.fromCharCode(Number.parseInt(code, 16)));
}
