import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { ReportedBuckets } from '@trellis/users/reported-buckets.ts';
import { SharedBuckets } from '@trellis/users/shared-buckets.ts';
import type { Rate } from '@trellis/users/token-buckets.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';

const CATEGORIES = [
  'messages',
  'joins',
  'invites',
  'room_creation',
  'login',
  'registration',
  'other',
] as const;

/** What is counted together; the names are those of the configuration. */
export type RateCategory = (typeof CATEGORIES)[number];

export type RateLimits = Readonly<Record<RateCategory, Rate>>;

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What requests to this route are counted as, `other` unless it says so; `false`: not at all. */
    rateLimit?: RateCategory | false;
  }
}

/**
 * Refuses requests that come too fast from one user, or without a token from one address (spec: "Rate limiting").
 * To be called after `authenticateRequests`, for the same routes. Application services are let through unless
 * their registration asks for limits. With several processes log-ins and registrations are counted by one for each key;
 * everything else where it comes, and reported, so that no request waits for another process.
 */
export function limitRates(app: FastifyInstance, limits: RateLimits, cluster?: Cluster): void {
  const buckets = new Map(
    CATEGORIES.map((name) => {
      const Buckets = name === 'login' || name === 'registration' ? SharedBuckets : ReportedBuckets;
      return [name, new Buckets(limits[name], name, cluster)];
    }),
  );
  app.addHook('onRequest', async (request) => {
    const { rateLimit: category = 'other' } = request.routeOptions.config;
    if (category === false || request.requester?.isUnlimited) return;
    const { duty, key } = request.routeOptions.config;
    // Passed on, and counted there.
    if (cluster?.shared && duty !== undefined && key && !cluster.owns(duty, key(request))) return;
    const wait = await buckets.get(category)!.take(keyOf(request));
    if (wait > 0) throw limitExceeded(wait);
  });
}

/** The HTTP server says the same in a `Retry-After` header. */
export function limitExceeded(retryAfterMs: number): MatrixError {
  return new MatrixError(429, 'M_LIMIT_EXCEEDED', 'Too many requests', { retry_after_ms: retryAfterMs });
}

function keyOf(request: FastifyRequest): string {
  return request.requester?.userId ?? networkOf(request.ip);
}

/** Whoever has one address of an IPv6 network of 64 bits has them all. */
export function networkOf(ip: string): string {
  if (!ip.includes(':') || ip.includes('.')) return ip;
  const [head = '', tail] = ip.split('%')[0]!.split('::', 2);
  const groups = head === '' ? [] : head.split(':');
  const rest = tail === undefined || tail === '' ? [] : tail.split(':');
  if (tail !== undefined) while (groups.length + rest.length < 8) groups.push('0');
  return `${[...groups, ...rest]
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':')}::/64`;
}
