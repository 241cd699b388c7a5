import { SUBMIT_TOKEN_PATH } from '@trellis/client-api/threepid-pages.ts';
import type { Mailer } from '@trellis/push/mailer.ts';
import { smsSender } from '@trellis/push/sms.ts';
import { verificationMail } from '@trellis/push/verification-mail.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import { Threepids } from '@trellis/users/threepids.ts';
import type { Core } from './core.ts';
import { publicUrl } from './push.ts';

export interface ThreepidParts {
  readonly accounts: Accounts;
  readonly mailer: Mailer | undefined;
}

const UNLIMITED = { perSecond: Number.POSITIVE_INFINITY, burst: 1 };

/** Third-party identifiers of accounts, and the messages by which they are confirmed. */
export function composeThreepids(
  { config, db, serverName, log, cluster }: Core,
  { accounts, mailer }: ThreepidParts,
) {
  const submitUrl = publicUrl(config) + SUBMIT_TOKEN_PATH;
  const { enabled, verification } = config.rate_limits;
  const threepidSessions = new ThreepidSessions({
    db,
    accounts,
    senders: {
      email: mailer && ((message) => mailer.send(verificationMail(message, { serverName, submitUrl }))),
      msisdn: config.sms && smsSender(config.sms, serverName),
    },
    cluster,
    rate: enabled ? { perSecond: verification.per_second, burst: verification.burst } : UNLIMITED,
    onSendError: (err, medium) =>
      log.error({ err, medium }, 'a message that confirms an address was not sent'),
  });
  return { threepids: new Threepids(db), threepidSessions, submitUrl };
}
