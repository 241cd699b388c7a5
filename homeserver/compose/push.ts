import { Badges } from '@trellis/push/badges.ts';
import { Candidates } from '@trellis/push/candidates.ts';
import { Gateway } from '@trellis/push/gateway.ts';
import { HttpDelivery } from '@trellis/push/http-delivery.ts';
import { MailDelivery } from '@trellis/push/mail-delivery.ts';
import { Mailer } from '@trellis/push/mailer.ts';
import { PusherTable } from '@trellis/push/pusher-table.ts';
import { Pushes } from '@trellis/push/pushes.ts';
import { UNSUBSCRIBE_PATH, unsubscribeRoutes } from '@trellis/push/unsubscribe-routes.ts';
import type { FastifyInstance } from 'fastify';
import type { Config } from '../config/schema.ts';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';
import type { UserDataArea } from './userdata.ts';

export interface PushParts {
  readonly transport: Pick<FederationTransport, 'fetchWith'>;
  readonly userData: Pick<
    UserDataArea,
    'evaluation' | 'receipts' | 'unread' | 'pushers' | 'invitePermissions'
  >;
  readonly mailer: Mailer | undefined;
}

/** Outgoing mail, where it is configured. */
export function composeMailer(core: Core): Mailer | undefined {
  if (!core.config.email) return undefined;
  const mailer = new Mailer(core.config.email);
  core.onClose(() => mailer.close());
  return mailer;
}

/** Where clients reach this server. */
export function publicUrl({ public_url, server_name }: Config): string {
  return (public_url ?? `https://${server_name}`).replace(/\/$/, '');
}

/** Notifications that go out: to push gateways, and by mail. */
export async function composePush(core: Core, { transport, userData, mailer }: PushParts) {
  const { config, db, cluster, rooms, memberships, streams, log } = core;
  const { evaluation, receipts, unread, pushers, invitePermissions } = userData;
  const table = new PusherTable(db);
  const badges = new Badges({ db, memberships, unread, counted: config.push.badge });
  const gateway = new Gateway(
    transport.fetchWith({ deny: config.push.deny_addresses, allow: config.push.allow_addresses }),
    { allowInsecure: config.push.allow_insecure },
  );
  const pushes = new Pushes({
    cluster,
    rooms,
    receipts: streams.receipts,
    table,
    badges,
    candidates: new Candidates({
      rooms,
      evaluation,
      reads: receipts,
      hidesInvite: (userId, sender) => invitePermissions.hides(userId, sender),
    }),
    http: new HttpDelivery({
      rooms,
      gateway,
      badges,
      progressed: ({ row }) => void table.save(row).catch((err) => log.warn({ err }, 'a push not noted')),
    }),
    mail: mailDelivery(core, table, mailer),
    log,
  });
  await pushes.prepare();
  pushers.onChange((userId) => {
    pushes.changed(userId).catch((err) => log.warn({ err, userId }, 'changed pushers were not told of'));
  });
  core.onReady(() => pushes.start());
  core.onClose(async () => {
    await pushes.close();
    gateway.close();
  });
  return {
    /** Pages that mails lead to. */
    openRoutes: (app: FastifyInstance) => unsubscribeRoutes(app, { table, pushers }),
  };
}

function mailDelivery(
  { config, rooms, serverName }: Core,
  table: PusherTable,
  mailer: Mailer | undefined,
): MailDelivery | undefined {
  if (!mailer || !config.email?.notifications) return undefined;
  return new MailDelivery({
    rooms,
    table,
    send: (mail) => mailer.send(mail),
    serverName,
    clientUrl: config.email.client_url,
    unsubscribeUrl: `${publicUrl(config)}${UNSUBSCRIBE_PATH}?token=`,
    delayMs: config.email.notification_delay_ms,
  });
}
