import type { Pushers } from '@trellis/users/pushers.ts';
import type { FastifyInstance } from 'fastify';
import { escapeHtml } from './mail-layout.ts';
import type { PusherTable } from './pusher-table.ts';

export interface UnsubscribeDeps {
  readonly table: Pick<PusherTable, 'findByUnsubscribeToken'>;
  readonly pushers: Pick<Pushers, 'delete'>;
}

export const UNSUBSCRIBE_PATH = '/_trellis/client/unsubscribe';

/**
 * Where the links lead that notification mails end with. Only the button of the page, or a mail program's own
 * (RFC 8058), takes effect: links are also followed by programs that look for what is bad behind them.
 */
export function unsubscribeRoutes(app: FastifyInstance, { table, pushers }: UnsubscribeDeps): void {
  app.register(async (scope) => {
    // Whatever form the button sends, all that counts is in the address.
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser('*', (_request, payload, done) => {
      payload.resume();
      done(null, undefined);
    });
    const config = { auth: 'none' } as const;

    scope.get<{ Querystring: { token?: string } }>(
      UNSUBSCRIBE_PATH,
      { config },
      async ({ query: { token } }, reply) => {
        const found = typeof token === 'string' && (await table.findByUnsubscribeToken(token));
        if (!found) return reply.code(404).type('text/html').send(page('There are no such mails any more.'));
        const form = `<form method="post"><button>Get no more mails</button></form>`;
        return reply.type('text/html').send(page(`Unread messages of ${found.userId} are mailed.`, form));
      },
    );

    scope.post<{ Querystring: { token?: string } }>(
      UNSUBSCRIBE_PATH,
      { config },
      async ({ query: { token } }, reply) => {
        const found = typeof token === 'string' && (await table.findByUnsubscribeToken(token));
        if (found) await pushers.delete(found.userId, found.appId, found.pushkey);
        return reply.type('text/html').send(page('No more mails will come.'));
      },
    );
  });
}

function page(text: string, more = ''): string {
  return `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Mail notifications</title></head>
<body style="font:16px/1.5 system-ui,sans-serif;max-width:32em;margin:4em auto;padding:0 1em">
<p>${escapeHtml(text)}</p>
${more}
</body>
</html>
`;
}
