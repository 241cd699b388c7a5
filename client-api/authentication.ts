import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';

/** Who a request comes from. */
export interface Requester {
  readonly userId: string;
  /** `undefined` only for application services that act without a device. */
  readonly deviceId: string | undefined;
  /** Identifies the access token without being it: transaction ids of device-less requesters are scoped to it. */
  readonly tokenId: string;
  readonly isGuest: boolean;
  readonly isAdmin: boolean;
  /** The account is suspended (spec: "Account suspension"): see `requireActive`. */
  readonly isSuspended?: boolean;
  /** Set when the request was made with an application service's `as_token`. */
  readonly appserviceId: string | undefined;
  /** Rate limits do not apply. */
  readonly isUnlimited?: boolean;
}

/** Finds the owner of an access token. Throws M_UNKNOWN_TOKEN (401), M_USER_LOCKED and the like. */
export type Authenticate = (
  token: string,
  request: {
    userId?: string;
    deviceId?: string;
    ip: string;
    userAgent: string | undefined;
    /** Accept users whose account is locked. */
    allowLocked?: boolean;
  },
) => Promise<Requester>;

declare module 'fastify' {
  interface FastifyRequest {
    requester: Requester | undefined;
  }
  interface FastifyContextConfig {
    /** `user` (the default) refuses requests without a token; `optional` accepts them; `none` does not look. */
    auth?: 'user' | 'optional' | 'none';
    /** Guests may call this endpoint (spec: "Guest Access"); others answer M_GUEST_ACCESS_FORBIDDEN. */
    guests?: boolean;
    /** Users whose account is locked may call this endpoint (spec: "Account locking"). */
    locked?: boolean;
  }
}

/** Authenticates every route of `app` according to its `config.auth`. */
export function authenticateRequests(app: FastifyInstance, authenticate: Authenticate): void {
  app.decorateRequest('requester', undefined);
  app.addHook('onRequest', async (request) => {
    const { auth = 'user', guests = false, locked = false } = request.routeOptions.config;
    if (auth === 'none') return;
    const token = accessToken(request);
    if (token === undefined) {
      if (auth === 'optional') return;
      throw new MatrixError(401, 'M_MISSING_TOKEN', 'Missing access token');
    }
    const query = request.query as Record<string, unknown>;
    const requester = await authenticate(token, {
      userId: textOf(query.user_id),
      deviceId: textOf(query.device_id) ?? textOf(query['org.matrix.msc3202.device_id']),
      ip: request.ip,
      userAgent: request.headers['user-agent'],
      allowLocked: locked,
    });
    if (requester.isGuest && !guests)
      throw new MatrixError(403, 'M_GUEST_ACCESS_FORBIDDEN', 'Guests may not do this');
    request.requester = requester;
  });
}

/** The requester of a route with `auth: 'user'`. */
export function requesterOf(request: FastifyRequest): Requester {
  if (!request.requester) throw new MatrixError(401, 'M_MISSING_TOKEN', 'Missing access token');
  return request.requester;
}

/** For paths with a `{userId}` that must be the requester's own. */
export function requireSelf(request: FastifyRequest, userId: string): Requester {
  const requester = requesterOf(request);
  if (requester.userId !== userId) throw forbidden('You may only do this for your own user');
  return requester;
}

/** For what suspended users may not do: join, invite, send, change their profile, redact what others sent. */
export function requireActive<R extends Pick<Requester, 'isSuspended'>>(requester: R): R {
  if (requester.isSuspended)
    throw new MatrixError(403, 'M_USER_SUSPENDED', 'You cannot perform this action while suspended');
  return requester;
}

function textOf(parameter: unknown): string | undefined {
  return typeof parameter === 'string' ? parameter : undefined;
}

/** The access token of a request, if it has one. */
export function accessToken(request: FastifyRequest): string | undefined {
  const header = request.headers.authorization;
  if (header !== undefined) {
    const match = /^Bearer +(\S+)$/i.exec(header);
    if (!match)
      throw new MatrixError(401, 'M_MISSING_TOKEN', 'The Authorization header is not "Bearer TOKEN"');
    return match[1];
  }
  // Deprecated since v1.11, still served: "Using access tokens in query strings".
  const query = request.query as Record<string, string | string[] | undefined>;
  return typeof query.access_token === 'string' ? query.access_token : undefined;
}
