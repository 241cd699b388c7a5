import { MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { Stage } from '@trellis/users/uia-stages.ts';
import type { FastifyInstance } from 'fastify';
import { acceptForms, escapeHtml, type HtmlPage, sendPage } from './html-page.ts';
import type { SignUpConditions } from './sign-up-conditions.ts';

export interface AuthFallbackDeps {
  readonly uia: Pick<Uia, 'completeByPage'>;
  readonly conditions: SignUpConditions;
}

interface Params {
  type: string;
}

interface StageForm {
  /** What stands above the button. */
  readonly fields: string;
  readonly button: string;
  readonly head?: string;
  readonly policy?: string;
  /** Makes of the form's fields what a client would send. */
  readonly auth: (fields: Readonly<Record<string, string>>) => Record<string, unknown>;
}

/** As the specification wants it of these pages. */
const DONE = `if (window.onAuthDone) {
  window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
  window.opener.postMessage("authDone", "*");
}`;

const MAX_SESSION = 64;

/**
 * Pages by which a user completes a stage in a browser, for clients that do not know it (spec: "User-interactive
 * API in the REST API", "Fallback").
 */
export function authFallbackRoutes(app: FastifyInstance, { uia, conditions }: AuthFallbackDeps): void {
  const forms = stageForms(conditions);
  const path = '/_matrix/client/v3/auth/:type/fallback/web';

  app.register(async (scope) => {
    acceptForms(scope);

    scope.get<{ Params: Params; Querystring: { session?: string } }>(
      path,
      { config: { auth: 'none' } },
      async ({ params, query }, reply) => {
        const { form } = formOf(params.type);
        const session = sessionIn(query.session);
        return sendPage(reply, 200, formPage(form, session));
      },
    );

    scope.post<{ Params: Params; Body: Record<string, string> | undefined }>(
      path,
      { config: { auth: 'none', rateLimit: 'login' } },
      async ({ params, body = {} }, reply) => {
        const { stage, form } = formOf(params.type);
        const session = sessionIn(body.session);
        const failure = await attempt(stage, session, form.auth(body));
        if (failure !== undefined) return sendPage(reply, 401, formPage(form, session, failure));
        const thanks = '<p>Thank you. You may close this window and go on in your app.</p>';
        return sendPage(reply, 200, { title: 'Done', body: thanks, script: DONE });
      },
    );
  });

  function formOf(type: string): { stage: Stage; form: StageForm } {
    const form = forms.get(type as Stage);
    if (!form) throw notFound('There is no page for this type of authentication');
    return { stage: type as Stage, form };
  }

  /** @returns why it failed */
  async function attempt(stage: Stage, session: string, auth: Record<string, unknown>) {
    try {
      return (await uia.completeByPage(session, stage, auth))?.error;
    } catch (error) {
      if (error instanceof MatrixError && error.status < 500) return error.message;
      throw error;
    }
  }
}

function sessionIn(session: string | undefined): string {
  if (typeof session !== 'string' || session === '' || session.length > MAX_SESSION)
    throw new MatrixError(400, 'M_MISSING_PARAM', 'session is missing');
  return session;
}

function stageForms({ policies, captcha }: SignUpConditions): ReadonlyMap<Stage, StageForm> {
  const forms = new Map<Stage, StageForm>([
    ['m.login.dummy', { fields: '<p>Go on?</p>', button: 'Go on', auth: () => ({ type: 'm.login.dummy' }) }],
    [
      'm.login.password',
      {
        fields: `<p><label>User name<br><input name="user" autocomplete="username" required></label></p>
<p><label>Password<br><input name="password" type="password" autocomplete="current-password" required></label></p>`,
        button: 'Confirm',
        auth: ({ user, password }) => ({ identifier: { type: 'm.id.user', user }, password }),
      },
    ],
    [
      'm.login.registration_token',
      {
        fields: '<p><label>The token that you were given<br><input name="token" required></label></p>',
        button: 'Go on',
        auth: ({ token }) => ({ token }),
      },
    ],
  ]);
  if (policies)
    forms.set('m.login.terms', {
      fields: Object.values(policies)
        .map(({ version: _version, ...languages }) => Object.values(languages)[0])
        .flatMap((document) => (typeof document === 'object' ? [document] : []))
        .map(
          ({ name, url }) =>
            `<p><label><input type="checkbox" required> I accept
<a href="${escapeHtml(url)}" target="_blank" rel="noopener">${escapeHtml(name)}</a></label></p>`,
        )
        .join('\n'),
      button: 'Go on',
      auth: () => ({}),
    });
  if (captcha)
    forms.set('m.login.recaptcha', {
      head: '<script src="https://www.google.com/recaptcha/api.js" async defer></script>',
      fields: `<div class="g-recaptcha" data-sitekey="${escapeHtml(captcha.publicKey)}"></div>`,
      button: 'Go on',
      policy:
        'script-src https://www.google.com/recaptcha/ https://www.gstatic.com/recaptcha/; ' +
        'frame-src https://www.google.com/recaptcha/; connect-src https://www.google.com/recaptcha/',
      auth: (fields) => ({ response: fields['g-recaptcha-response'] }),
    });
  return forms;
}

function formPage(form: StageForm, session: string, failure?: string): HtmlPage {
  const { fields, button, head = '', policy } = form;
  return {
    title: 'Authentication',
    body: `${head}<form method="post">
${failure === undefined ? '' : `<p role="alert"><strong>${escapeHtml(failure)}.</strong></p>`}
<input type="hidden" name="session" value="${escapeHtml(session)}">
${fields}
<p><button>${button}</button></p>
</form>`,
    policy: ["form-action 'self'", policy].filter(Boolean).join('; '),
  };
}
