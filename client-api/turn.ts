import { createHmac } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';

export interface TurnConfig {
  readonly uris: readonly string[];
  /** Shared with the TURN servers (coturn: `static-auth-secret`). */
  readonly sharedSecret: string;
  readonly lifetimeMs: number;
}

/**
 * `GET /voip/turnServer` (spec: "Voice over IP"). Credentials are good for a time, by the scheme that TURN servers
 * call their REST API: the user name says until when, the password proves that this server gave it out.
 */
export function turnRoutes(app: FastifyInstance, { turn }: { readonly turn: TurnConfig | undefined }): void {
  app.get('/_matrix/client/v3/voip/turnServer', async (request) => {
    if (!turn || turn.uris.length === 0) return {};
    const ttl = Math.floor(turn.lifetimeMs / 1000);
    const username = `${Math.floor(Date.now() / 1000) + ttl}:${requesterOf(request).userId}`;
    const password = createHmac('sha1', turn.sharedSecret).update(username).digest('base64');
    return { username, password, uris: turn.uris, ttl };
  });
}
