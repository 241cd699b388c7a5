import { invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import { canonicalEmail, canonicalPhone, type Medium } from '@trellis/users/threepid-address.ts';
import type { Purpose, ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import type { Threepids } from '@trellis/users/threepids.ts';
import type { Uia } from '@trellis/users/uia.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface ThreepidDeps {
  readonly threepids: Threepids;
  readonly threepidSessions: ThreepidSessions;
  readonly uia: Uia;
  /** Where clients send codes that their users got. */
  readonly submitUrl: string;
}

const text = Type.String({ maxLength: 1024 });
const sendAttempt = Type.Integer({ minimum: 0 });
const secret = Type.String({ pattern: '^[0-9a-zA-Z.=_-]{1,255}$' });
const nextLink = Type.Optional(text);
const requestBodies = {
  email: Type.Object({ client_secret: secret, email: text, send_attempt: sendAttempt, next_link: nextLink }),
  msisdn: Type.Object({
    client_secret: secret,
    country: text,
    phone_number: text,
    send_attempt: sendAttempt,
    next_link: nextLink,
  }),
};
const identifierBody = Type.Object({
  medium: Type.Enum(['email', 'msisdn']),
  address: text,
  id_server: Type.Optional(text),
});
const credentials = { client_secret: text, sid: text };
const bindBody = Type.Object({ ...credentials, id_server: text, id_access_token: text });

interface TokenRequest {
  client_secret: string;
  send_attempt: number;
  next_link?: string;
  email?: string;
  country?: string;
  phone_number?: string;
}

/**
 * Third-party identifiers of accounts (spec: "Adding Account Administrative Contact Information"). This server
 * confirms them itself, where it can send mail and text messages, and trusts no identity server.
 */
export function threepidRoutes(app: FastifyInstance, deps: ThreepidDeps): void {
  const { threepids, threepidSessions, uia } = deps;
  const base = '/_matrix/client/v3/account/3pid';

  app.get(base, async (request) => ({ threepids: await threepids.of(requesterOf(request).userId) }));

  app.post<{ Body: { medium: string; address: string } }>(
    `${base}/delete`,
    { schema: { body: identifierBody } },
    async (request) => {
      const { medium, address } = request.body;
      await threepids.remove(requesterOf(request).userId, medium, address);
      return { id_server_unbind_result: 'no-support' };
    },
  );

  app.post(`${base}/unbind`, { schema: { body: identifierBody } }, async () => ({
    id_server_unbind_result: 'no-support',
  }));

  app.post<{ Body: { client_secret: string; sid: string } }>(
    `${base}/add`,
    { schema: { body: Type.Object(credentials) }, config: { rateLimit: 'login' } },
    async (request) => {
      const { client_secret, sid } = request.body;
      const { userId } = requesterOf(request);
      const find = () => threepidSessions.validatedAny('add', sid, client_secret);
      // Nobody is asked for the password in vain.
      if (!(await find())) throw notConfirmed();
      await uia.confirmPassword({ endpoint: 'POST /account/3pid/add', body: request.body, userId });
      const threepid = await find();
      if (!threepid) throw notConfirmed();
      await threepids.add(userId, threepid);
      await threepidSessions.end(sid);
      return {};
    },
  );

  app.post(base, { schema: { body: Type.Object({ three_pid_creds: bindBody }) } }, async () => {
    throw new MatrixError(403, 'M_THREEPID_AUTH_FAILED', 'No identity server is trusted here');
  });

  app.post(`${base}/bind`, { schema: { body: bindBody } }, async () => {
    throw new MatrixError(400, 'M_SERVER_NOT_TRUSTED', 'No identity server is trusted here');
  });

  for (const medium of ['email', 'msisdn'] as const) tokenRoutes(app, deps, medium);
}

function tokenRoutes(
  app: FastifyInstance,
  { threepidSessions, submitUrl }: ThreepidDeps,
  medium: Medium,
): void {
  const options = {
    schema: { body: requestBodies[medium] },
    config: { auth: 'none', rateLimit: 'registration' },
  } as const;
  const thing = medium === 'email' ? 'e-mail addresses' : 'phone numbers';
  const begin = async (body: TokenRequest, purpose: Purpose): Promise<object> => {
    const sid = await threepidSessions.request({
      medium,
      address: addressIn(medium, body),
      purpose,
      clientSecret: body.client_secret,
      sendAttempt: body.send_attempt,
      nextLink: checkedLink(body.next_link),
    });
    // A link in a mail confirms by itself; a code in a text message comes back through the client.
    return medium === 'email' ? { sid } : { sid, submit_url: submitUrl };
  };
  const isSupported = threepidSessions.supports(medium);

  app.post<{ Body: TokenRequest }>(
    `/_matrix/client/v3/register/${medium}/requestToken`,
    options,
    async ({ body }) => {
      if (!isSupported) throw denied(`Nobody registers with ${thing} here`);
      return begin(body, 'register');
    },
  );
  app.post<{ Body: TokenRequest }>(
    `/_matrix/client/v3/account/password/${medium}/requestToken`,
    options,
    async ({ body }) => {
      if (!isSupported) throw denied(`Passwords are not reset by ${thing} here`);
      return begin(body, 'password');
    },
  );
  app.post<{ Body: TokenRequest }>(
    `/_matrix/client/v3/account/3pid/${medium}/requestToken`,
    options,
    async ({ body }) => {
      addressIn(medium, body);
      if (!isSupported)
        throw new MatrixError(400, 'M_THREEPID_MEDIUM_NOT_SUPPORTED', `Accounts here have no ${thing}`);
      return begin(body, 'add');
    },
  );
}

function addressIn(medium: Medium, { email, country, phone_number }: TokenRequest): string {
  const address = medium === 'email' ? canonicalEmail(email!) : canonicalPhone(country!, phone_number!);
  if (address === undefined)
    throw invalidParam(medium === 'email' ? 'Not an e-mail address' : 'Not a phone number');
  return address;
}

/** The page that ends a confirmation leads on to there: nothing but web pages. */
function checkedLink(link: string | undefined): string | undefined {
  if (link === undefined || link === '') return undefined;
  const url = URL.parse(link);
  if (url?.protocol !== 'https:' && url?.protocol !== 'http:') throw invalidParam('next_link is no web page');
  return url.href;
}

function denied(message: string): MatrixError {
  return new MatrixError(403, 'M_THREEPID_DENIED', message);
}

function notConfirmed(): MatrixError {
  return new MatrixError(400, 'M_THREEPID_AUTH_FAILED', 'This session has confirmed no address');
}
