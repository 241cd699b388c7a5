import { invalidParam } from '@trellis/protocol/errors.ts';
import { MAX_STICKY_MS } from '@trellis/rooms/sticky-events.ts';
import type { FastifyRequest } from 'fastify';

/** For how long the client wants an event to be sticky (MSC4354); the second name is that of an earlier draft. */
export function stickyDurationOf(request: FastifyRequest): number | undefined {
  const query = request.query as Record<string, unknown>;
  const text = query['org.matrix.msc4354.sticky_duration_ms'] ?? query.msc4354_stick_duration_ms;
  if (text === undefined) return undefined;
  const duration = typeof text === 'string' && /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(duration <= MAX_STICKY_MS))
    throw invalidParam(`sticky_duration_ms is not a number of milliseconds up to ${MAX_STICKY_MS}`);
  return duration;
}
