import { hash } from 'node:crypto';
import type { FastifyInstance, FastifyReply } from 'fastify';

const MAX_FORM_BYTES = 16_384;

export interface HtmlPage {
  readonly title: string;
  /** Markup; what comes from outside has gone through `escapeHtml`. */
  readonly body: string;
  /** Runs in the page; no other script does. */
  readonly script?: string;
  /** Further directives of the content security policy. */
  readonly policy?: string;
}

/** Takes the fields of forms as bodies. To be called in a scope of their routes. */
export function acceptForms(scope: FastifyInstance): void {
  scope.removeAllContentTypeParsers();
  scope.addContentTypeParser(
    'application/x-www-form-urlencoded',
    { parseAs: 'string', bodyLimit: MAX_FORM_BYTES },
    (_request, body, done) => done(null, Object.fromEntries(new URLSearchParams(String(body)))),
  );
}

/** Answers with a page of this server, which nobody can put into a frame and which runs no script but its own. */
export function sendPage(reply: FastifyReply, status: number, page: HtmlPage): FastifyReply {
  const { title, body, script, policy } = page;
  const directives = [
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    ...(script === undefined ? [] : [`script-src 'sha256-${hash('sha256', script, 'base64')}'`]),
    ...(policy === undefined ? [] : [policy]),
  ];
  return reply
    .code(status)
    .type('text/html; charset=utf-8')
    .header('cache-control', 'no-store')
    .header('referrer-policy', 'no-referrer')
    .header('content-security-policy', directives.join('; '))
    .send(`<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escapeHtml(title)}</title></head>
<body style="font:16px/1.5 system-ui,sans-serif;max-width:32em;margin:4em auto;padding:0 1em">
${body}
${script === undefined ? '' : `<script>${script}</script>`}
</body>
</html>
`);
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
