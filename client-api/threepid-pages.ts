import { badJson, MatrixError } from '@trellis/protocol/errors.ts';
import { parseJson } from '@trellis/protocol/json.ts';
import type { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import { asObject } from '@trellis/users/user-identifier.ts';
import type { FastifyInstance, FastifyReply } from 'fastify';
import { escapeHtml, sendPage } from './html-page.ts';

export const SUBMIT_TOKEN_PATH = '/_trellis/client/threepid/submit_token';

interface Submission {
  readonly sid: string;
  readonly client_secret: string;
  readonly token: string;
}

const MAX_LENGTH = 1024;

/**
 * Where addresses are confirmed: by the page that the link in a mail leads to, whose button posts a form, and by clients
 * with the code of a text message (identity service API, `POST /validate/msisdn/submitToken`). To look at the page
 * confirms nothing: links in mails are also followed by programs that look for what is bad behind them.
 */
export function threepidPages(app: FastifyInstance, { sessions }: { sessions: ThreepidSessions }): void {
  app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser(
      'application/x-www-form-urlencoded',
      { parseAs: 'string', bodyLimit: 16_384 },
      (_request, body, done) => done(null, { form: Object.fromEntries(new URLSearchParams(String(body))) }),
    );
    scope.addContentTypeParser('*', { parseAs: 'string', bodyLimit: 16_384 }, (_request, body, done) => {
      try {
        done(null, { json: asObject(parseJson(String(body))) });
      } catch (error) {
        done(error as Error);
      }
    });
    const config = { auth: 'none', rateLimit: 'registration' } as const;

    scope.get(SUBMIT_TOKEN_PATH, { config: { auth: 'none' } }, async (request, reply) => {
      const given = submissionIn(request.query);
      if (!given) return page(reply, 400, 'This link is not complete.');
      const fields = Object.entries(given)
        .map(([name, value]) => `<input type="hidden" name="${name}" value="${escapeHtml(value)}">`)
        .join('');
      const form = `<form method="post" action="${SUBMIT_TOKEN_PATH}">${fields}<button>Confirm</button></form>`;
      return page(
        reply,
        200,
        'Confirm that this address is yours, and that it was you who asked for it.',
        form,
      );
    });

    scope.post<{ Body: { form?: object; json?: object } | undefined }>(
      SUBMIT_TOKEN_PATH,
      { config },
      async ({ body }, reply) => {
        const given = submissionIn(body?.form ?? body?.json);
        if (body?.form === undefined) {
          if (!given) throw badJson('sid, client_secret and token are needed');
          await sessions.submit(given.sid, given.client_secret, given.token);
          return { success: true };
        }
        try {
          if (!given) throw new MatrixError(400, 'M_INVALID_PARAM', 'This form is not complete');
          const next = await sessions.submit(given.sid, given.client_secret, given.token);
          if (next !== undefined) return reply.redirect(next, 303);
          return page(reply, 200, 'Thank you, the address is confirmed. Go on in your app.');
        } catch (error) {
          if (!(error instanceof MatrixError)) throw error;
          return page(reply, error.status, `${error.message}. Have your app send another mail.`);
        }
      },
    );
  });
}

function submissionIn(value: unknown): Submission | undefined {
  const { sid, client_secret, token } = asObject(value) ?? {};
  for (const given of [sid, client_secret, token])
    if (typeof given !== 'string' || given === '' || given.length > MAX_LENGTH) return undefined;
  return { sid, client_secret, token } as Submission;
}

function page(reply: FastifyReply, status: number, text: string, more = ''): FastifyReply {
  const body = `<p>${escapeHtml(text)}</p>\n${more}`;
  return sendPage(reply, status, { title: 'Confirm an address', body });
}
