import { forbidden } from '@trellis/protocol/errors.ts';
import type { Accounts } from './accounts.ts';
import type { RegistrationTokens } from './registration-tokens.ts';
import type { Purpose, ThreepidSessions, ValidatedThreepid } from './threepid-sessions.ts';
import { accountOf, asObject, type JsonObject } from './user-identifier.ts';

export type Stage =
  | 'm.login.password'
  | 'm.login.dummy'
  | 'm.login.registration_token'
  | 'm.login.terms'
  | 'm.login.recaptcha'
  | 'm.login.email.identity'
  | 'm.login.msisdn';

/** Says whether somebody has solved a riddle that programs can't. Its implementation asks the service that set it. */
export type CheckCaptcha = (response: string) => Promise<boolean>;

export interface StageDeps {
  readonly accounts: Accounts;
  readonly registrationTokens: RegistrationTokens;
  readonly threepidSessions?: ThreepidSessions;
  readonly checkCaptcha?: CheckCaptcha | undefined;
}

/** What the stages of one session have found out. */
export interface StageSession {
  readonly userId: string | null;
  passwordUserId: string | null;
  registrationToken: string | null;
  readonly threepids: ValidatedThreepid[];
}

export interface StageFailure {
  readonly errcode: string;
  readonly error: string;
}

const MAX_CAPTCHA_RESPONSE = 10_000;

/** The stages of user-interactive authentication (spec: "Authentication types"). */
export class Stages {
  readonly #deps: StageDeps;

  constructor(deps: StageDeps) {
    this.#deps = deps;
  }

  /** @returns what went wrong; `undefined` when the stage is complete */
  async attempt(
    stage: Stage,
    auth: JsonObject,
    session: StageSession,
    purpose: Purpose | undefined,
  ): Promise<StageFailure | undefined> {
    switch (stage) {
      case 'm.login.dummy':
      case 'm.login.terms':
        return undefined;
      case 'm.login.password':
        return this.#password(auth, session);
      case 'm.login.registration_token':
        if (typeof auth.token !== 'string' || !(await this.#deps.registrationTokens.isValid(auth.token)))
          return { errcode: 'M_UNAUTHORIZED', error: 'Invalid registration token' };
        session.registrationToken = auth.token;
        return undefined;
      case 'm.login.recaptcha':
        return this.#captcha(auth.response);
      case 'm.login.email.identity':
      case 'm.login.msisdn':
        return this.#confirmedAddress(stage, auth, session, purpose);
    }
  }

  async #password(auth: JsonObject, session: StageSession): Promise<StageFailure | undefined> {
    const { accounts } = this.#deps;
    const wrong = { errcode: 'M_FORBIDDEN', error: 'Invalid username or password' };
    const found = await accountOf(accounts, auth);
    if (typeof auth.password !== 'string') return wrong;
    if (session.userId !== null && found.userId !== session.userId)
      throw forbidden('The password must be that of your own account');
    if (!(await accounts.checkPassword(found.userId, auth.password))) return wrong;
    session.passwordUserId = found.userId;
    return undefined;
  }

  async #captcha(response: unknown): Promise<StageFailure | undefined> {
    if (typeof response !== 'string' || response === '' || response.length > MAX_CAPTCHA_RESPONSE)
      return { errcode: 'M_CAPTCHA_NEEDED', error: 'The riddle has not been solved' };
    if (await this.#deps.checkCaptcha?.(response)) return undefined;
    return { errcode: 'M_CAPTCHA_INVALID', error: 'The riddle was not solved' };
  }

  /** Clients ask again and again until the link in the mail was followed. */
  async #confirmedAddress(
    stage: 'm.login.email.identity' | 'm.login.msisdn',
    auth: JsonObject,
    session: StageSession,
    purpose: Purpose | undefined,
  ): Promise<StageFailure | undefined> {
    const { sid, client_secret } = asObject(auth.threepid_creds ?? auth.threepidCreds) ?? {};
    const medium = stage === 'm.login.msisdn' ? 'msisdn' : 'email';
    const threepid =
      purpose && (await this.#deps.threepidSessions?.validated(medium, purpose, sid, client_secret));
    if (!threepid) return { errcode: 'M_UNAUTHORIZED', error: 'This address has not been confirmed yet' };
    session.threepids.push(threepid);
    return undefined;
  }
}
