import { createTransport, type Transporter } from 'nodemailer';

export interface MailerConfig {
  readonly smtp: {
    readonly host: string;
    readonly port: number;
    /** `tls`: from the first byte; `starttls`: required before anything else is said. */
    readonly security: 'tls' | 'starttls' | 'none';
    readonly username?: string | undefined;
    readonly password?: string | undefined;
    readonly verify_tls: boolean;
  };
  readonly from: string;
}

export interface Mail {
  readonly to: string;
  readonly subject: string;
  readonly text: string;
  readonly html: string;
  /** Where the reader can have no more of these mails (RFC 8058). */
  readonly unsubscribeUrl?: string;
}

/** Sends a mail; rejects when the server for outgoing mail does not take it. */
export type SendMail = (mail: Mail) => Promise<void>;

const CONNECTIONS = 4;
const TIMEOUT_MS = 10_000;

/** Outgoing mail by SMTP, over a few connections that stay open while there is something to send. */
export class Mailer {
  readonly #transport: Transporter;
  readonly #from: string;

  constructor({ smtp, from }: MailerConfig) {
    const { host, port, security, username, password, verify_tls } = smtp;
    this.#from = from;
    this.#transport = createTransport({
      pool: true,
      maxConnections: CONNECTIONS,
      host,
      port,
      secure: security === 'tls',
      requireTLS: security === 'starttls',
      ignoreTLS: security === 'none',
      auth: username === undefined ? undefined : { user: username, pass: password ?? '' },
      tls: { rejectUnauthorized: verify_tls },
      connectionTimeout: TIMEOUT_MS,
      greetingTimeout: TIMEOUT_MS,
      socketTimeout: 2 * TIMEOUT_MS,
      dnsTimeout: TIMEOUT_MS,
      // Nothing that users write may be taken for a file or an address to be read into a mail.
      disableFileAccess: true,
      disableUrlAccess: true,
    });
  }

  async send({ to, subject, text, html, unsubscribeUrl }: Mail): Promise<void> {
    await this.#transport.sendMail({
      from: this.#from,
      // As an object it is one address, whatever is in it.
      to: { name: '', address: to },
      subject,
      text,
      html,
      headers: {
        'Auto-Submitted': 'auto-generated',
        'X-Auto-Response-Suppress': 'All',
        ...(unsubscribeUrl !== undefined && {
          'List-Unsubscribe': `<${unsubscribeUrl}>`,
          'List-Unsubscribe-Post': 'List-Unsubscribe=One-Click',
        }),
      },
    });
  }

  close(): void {
    this.#transport.close();
  }
}
