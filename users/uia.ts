import { hash, randomBytes } from 'node:crypto';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Accounts } from './accounts.ts';
import type { Purpose, ValidatedThreepid } from './threepid-sessions.ts';
import { type Stage, type StageDeps, type StageFailure, type StageSession, Stages } from './uia-stages.ts';
import { asObject, type JsonObject } from './user-identifier.ts';

export interface UiaRequest {
  /** Method and path, with whatever in the path says what is to be done. */
  readonly endpoint: string;
  readonly body: unknown;
  /** Who makes the request; `undefined` without an access token. */
  readonly userId: string | undefined;
  /** What addresses must have been confirmed for, where a flow asks for one. */
  readonly purpose?: Purpose;
}

/** What the stages of a completed flow found out. */
export interface UiaOutcome {
  /** Whose password was given. */
  readonly passwordUserId: string | undefined;
  readonly registrationToken: string | undefined;
  /** Addresses that were confirmed. */
  readonly threepids: readonly ValidatedThreepid[];
  readonly completed: readonly string[];
}

export interface UiaDeps extends StageDeps {
  readonly db: Queryable;
  /** What clients have to know for a stage, where it is part of a flow. */
  readonly params?: Readonly<Partial<Record<Stage, object>>>;
  readonly lifetimeMs?: number;
}

interface UiaSession extends StageSession {
  readonly id: string;
  readonly endpoint: string;
  paramsHash: string | null;
  readonly completed: string[];
  /** Whether the database has it: a request that completes a flow at once needs no session. */
  stored: boolean;
}

/** The 401 by which the client learns what is asked of it. Bears `errcode` only after a stage went wrong. */
export class UiaChallenge extends MatrixError {
  readonly #attempted: boolean;

  constructor(body: JsonObject, failure?: StageFailure) {
    super(401, failure?.errcode ?? 'M_FORBIDDEN', failure?.error ?? 'Authentication needed', body);
    this.#attempted = failure !== undefined;
  }

  override toBody(): Record<string, unknown> {
    return this.#attempted ? super.toBody() : { ...this.extra };
  }
}

/**
 * User-Interactive Authentication (spec: "User-interactive API in the REST API"). A session belongs to one user,
 * endpoint and set of parameters, and ends when its flow is complete: each action is confirmed anew.
 */
export class Uia {
  readonly #db: Queryable;
  readonly #accounts: Accounts;
  readonly #stages: Stages;
  readonly #params: Readonly<Partial<Record<Stage, object>>>;
  readonly #lifetimeMs: number;

  constructor(deps: UiaDeps) {
    this.#db = deps.db;
    this.#accounts = deps.accounts;
    this.#stages = new Stages(deps);
    this.#params = deps.params ?? {};
    this.#lifetimeMs = deps.lifetimeMs ?? 900_000;
  }

  /** Has the requester confirm by password that it is really them. */
  async confirmPassword(request: UiaRequest): Promise<UiaOutcome> {
    if (request.userId !== undefined) {
      const account = await this.#accounts.get(request.userId);
      if (!account?.hasPassword) throw forbidden('This account has no password to confirm the action with');
    }
    return this.complete(request, [['m.login.password']]);
  }

  /**
   * Resolves when the request has completed one of the flows.
   *
   * @throws UiaChallenge with what is missing; M_FORBIDDEN when the session is for something else
   */
  async complete(request: UiaRequest, flows: readonly Stage[][]): Promise<UiaOutcome> {
    const { auth: rawAuth, ...params } = asObject(request.body) ?? {};
    const auth = asObject(rawAuth);
    const session =
      auth?.session === undefined ? this.#newSession(request) : await this.#load(String(auth.session));
    if (!session) {
      const fresh = this.#newSession(request);
      throw await this.#challenge(fresh, flows, { errcode: 'M_UNKNOWN', error: 'The session has expired' });
    }
    requireSame(session, request, params);
    if (!auth) throw await this.#challenge(session, flows);
    const type = auth.type;
    if (type !== undefined && !session.completed.includes(String(type))) {
      const stage = flows.flat().find((stage) => stage === type);
      if (!stage) {
        const error = 'This type of authentication is not part of any flow';
        throw await this.#challenge(session, flows, { errcode: 'M_INVALID_PARAM', error });
      }
      const failure = await this.#stages.attempt(stage, auth, session, request.purpose);
      if (failure) throw await this.#challenge(session, flows, failure);
      session.completed.push(stage);
    }
    const complete = flows.some((stages) => stages.every((stage) => session.completed.includes(stage)));
    if (!complete) throw await this.#challenge(session, flows);
    if (session.stored && !(await this.#end(session)))
      throw forbidden('This authentication has been used already');
    return {
      passwordUserId: session.passwordUserId ?? undefined,
      registrationToken: session.registrationToken ?? undefined,
      threepids: session.threepids,
      completed: session.completed,
    };
  }

  /**
   * Completes a stage of a session by a page (spec: "Fallback"). The request that the session is for goes on with it.
   *
   * @returns what went wrong; `undefined` when the stage is complete
   */
  async completeByPage(sessionId: string, stage: Stage, auth: JsonObject): Promise<StageFailure | undefined> {
    const session = await this.#load(sessionId);
    if (!session) return { errcode: 'M_UNKNOWN', error: 'The session has expired' };
    if (session.completed.includes(stage)) return undefined;
    const failure = await this.#stages.attempt(stage, auth, session, undefined);
    if (failure) return failure;
    session.completed.push(stage);
    await this.#store(session);
    return undefined;
  }

  async #challenge(
    session: UiaSession,
    flows: readonly Stage[][],
    failure?: StageFailure,
  ): Promise<UiaChallenge> {
    await this.#store(session);
    const stages = new Set(flows.flat());
    const params = Object.entries(this.#params).filter(([stage]) => stages.has(stage as Stage));
    const body = {
      session: session.id,
      flows: flows.map((stages) => ({ stages })),
      params: Object.fromEntries(params),
      ...(session.completed.length > 0 && { completed: session.completed }),
    };
    return new UiaChallenge(body, failure);
  }

  #newSession({ endpoint, userId }: UiaRequest): UiaSession {
    return {
      id: randomBytes(18).toString('base64url'),
      endpoint,
      userId: userId ?? null,
      paramsHash: null,
      completed: [],
      passwordUserId: null,
      registrationToken: null,
      threepids: [],
      stored: false,
    };
  }

  async #load(id: string): Promise<UiaSession | undefined> {
    if (!/^[A-Za-z0-9_-]{24}$/.test(id)) return undefined;
    const rows = await this.#db.query<Omit<UiaSession, 'threepids'> & { threepids: string | null }>(
      `SELECT session_id AS id, endpoint, user_id AS "userId", encode(params_hash, 'hex') AS "paramsHash", completed,
              password_user_id AS "passwordUserId", registration_token AS "registrationToken", threepids, true AS stored
       FROM uia_sessions WHERE session_id = $1 AND expires_ts > $2`,
      [id, Date.now()],
    );
    const [row] = rows;
    return row && { ...row, threepids: JSON.parse(row.threepids ?? '[]') as ValidatedThreepid[] };
  }

  async #store(session: UiaSession): Promise<void> {
    const { id, endpoint, userId, paramsHash, completed, passwordUserId, registrationToken } = session;
    const threepids = JSON.stringify(session.threepids);
    await this.#db.query(
      `INSERT INTO uia_sessions (session_id, endpoint, user_id, params_hash, completed, password_user_id,
                                 registration_token, expires_ts, threepids)
       VALUES ($1, $2, $3, decode($4, 'hex'), $5, $6, $7, $8, $9)
       ON CONFLICT (session_id) DO UPDATE SET params_hash = excluded.params_hash,
         completed = ARRAY(SELECT DISTINCT unnest(uia_sessions.completed || excluded.completed)),
         password_user_id = coalesce(excluded.password_user_id, uia_sessions.password_user_id),
         registration_token = coalesce(excluded.registration_token, uia_sessions.registration_token),
         threepids = excluded.threepids`,
      [
        id,
        endpoint,
        userId,
        paramsHash,
        completed,
        passwordUserId,
        registrationToken,
        Date.now() + this.#lifetimeMs,
        threepids,
      ],
    );
  }

  /** @returns false when another request was faster */
  async #end(session: UiaSession): Promise<boolean> {
    const rows = await this.#db.query('DELETE FROM uia_sessions WHERE session_id = $1 RETURNING 1', [
      session.id,
    ]);
    return rows.length > 0;
  }
}

/** A session confirms what was asked when it began. Clients may begin it with an empty request, to see the flows. */
function requireSame(session: UiaSession, request: UiaRequest, params: JsonObject): void {
  const paramsHash = hashParams(params);
  session.paramsHash ??= paramsHash;
  if (
    session.endpoint !== request.endpoint ||
    session.userId !== (request.userId ?? null) ||
    session.paramsHash !== paramsHash
  )
    throw forbidden('The request has changed since authentication for it began');
}

/** Passwords are left out: nothing that one could be guessed from is stored. */
function hashParams({ password, new_password, ...params }: JsonObject): string | null {
  if (Object.keys(params).length === 0) return null;
  const sorted = JSON.stringify(params, (_key, value) =>
    asObject(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value,
  );
  return hash('sha256', sorted);
}
