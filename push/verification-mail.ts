import type { Verification } from '@trellis/users/threepid-sessions.ts';
import { escapeHtml, mailButton, mailPage } from './mail-layout.ts';
import type { Mail } from './mailer.ts';

export interface VerificationMailOptions {
  readonly serverName: string;
  /** The page that confirms an address. */
  readonly submitUrl: string;
}

const TITLES = {
  register: 'Confirm your e-mail address',
  add: 'Confirm your e-mail address',
  password: 'Set a new password',
} as const;

/** The mail by which an address is confirmed, or by which its owner learns why it cannot be. */
export function verificationMail(verification: Verification, options: VerificationMailOptions): Mail {
  const { serverName, submitUrl } = options;
  const { address: to, purpose, kind } = verification;
  const footer = `If you did not ask for this mail from ${serverName}, take no notice of it: nothing will happen.`;
  if (kind !== 'confirm') {
    const title = kind === 'in-use' ? 'You have an account already' : 'There is no account of yours';
    return mailOf(to, title, reasonOf(verification, serverName), footer);
  }
  const { sid, clientSecret, token } = verification;
  const url = `${submitUrl}?${new URLSearchParams({ sid, client_secret: clientSecret, token })}`;
  return mailOf(to, TITLES[purpose], purposeOf(purpose, serverName), footer, url);
}

function purposeOf(purpose: Verification['purpose'], serverName: string): string {
  const link = 'Follow this link, which holds for an hour, and then go on in your app';
  switch (purpose) {
    case 'register':
      return `Someone, hopefully you, is making an account on ${serverName} with this address. ${link}.`;
    case 'add':
      return `Someone, hopefully you, wants to have this address at their account on ${serverName}. ${link}.`;
    case 'password':
      return `Someone, hopefully you, wants to set a new password for your account on ${serverName}. ${link}.`;
  }
}

function reasonOf({ purpose, kind }: Verification, serverName: string): string {
  if (kind === 'unknown')
    return `Someone, hopefully you, wanted to set a new password on ${serverName}, but no account there has this address. You may have registered with another one.`;
  const wanted = purpose === 'register' ? 'make an account' : 'have this address at their account';
  return `Someone, hopefully you, wanted to ${wanted} on ${serverName}, but an account there has this address already. If you forgot its password, have your app set a new one.`;
}

function mailOf(to: string, subject: string, text: string, footer: string, url?: string): Mail {
  const link = url === undefined ? '' : `${url}\n\n`;
  return {
    to,
    subject,
    text: `${text}\n\n${link}-- \n${footer}\n`,
    html: mailPage(
      subject,
      `<p>${escapeHtml(text)}</p>${url === undefined ? '' : mailButton(url, 'Go on')}`,
      escapeHtml(footer),
    ),
  };
}
