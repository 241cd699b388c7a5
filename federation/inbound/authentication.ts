import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import { badJson, forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonValue } from '@trellis/protocol/event.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { KeyRing } from '../key-ring.ts';
import { parseServerAddress } from '../server-name.ts';
import { parseXMatrix, signedText, type XMatrix } from '../x-matrix.ts';

declare module 'fastify' {
  interface FastifyRequest {
    xMatrix: XMatrix | undefined;
  }
}

export interface ServerAuthentication {
  serverName: string;
  keyRing: Pick<KeyRing, 'verifyRequest'>;
  /** Servers that this one federates with; everyone when left out. */
  isAllowed?: (serverName: string) => boolean;
  /** Called for each request that was signed rightly: the server can be reached again. */
  onContact?: (serverName: string) => void;
}

/**
 * Requires an X-Matrix signature for every route of `app`.
 * https://spec.matrix.org/v1.18/server-server-api/#request-authentication
 */
export function authenticateServers(app: FastifyInstance, auth: ServerAuthentication): void {
  app.decorateRequest('xMatrix', undefined);
  // What can be refused by the header alone is refused before the body is read.
  app.addHook('onRequest', async (request) => {
    request.xMatrix = checkHeader(request.headers.authorization, auth);
  });
  // The signature covers the body, and schemas are looked at only for servers that are who they say.
  app.addHook('preValidation', async (request) => {
    const { origin, destination, key, sig } = request.xMatrix!;
    const text = signedText({
      method: request.method,
      uri: request.originalUrl,
      origin,
      destination,
      content: contentOf(request.body as JsonValue | undefined),
    });
    await auth.keyRing.verifyRequest(origin, key, sig, text);
    auth.onContact?.(origin);
  });
}

/** The server that a request of an authenticated route comes from. */
export function originOf(request: FastifyRequest): string {
  if (!request.xMatrix) throw unauthorized('The request is not authenticated');
  return request.xMatrix.origin;
}

function checkHeader(header: string | undefined, auth: ServerAuthentication): XMatrix {
  if (header === undefined) throw unauthorized('Missing Authorization header');
  const parsed = parseXMatrix(header);
  if (!parsed) throw unauthorized('The Authorization header is not a valid X-Matrix header');
  // Servers from before v1.3 leave the destination out; a wrong one is another server's request played to us.
  if (parsed.destination !== undefined && parsed.destination !== auth.serverName)
    throw unauthorized('The request is for another server');
  if (!parseServerAddress(parsed.origin)) throw unauthorized('The origin is not a server name');
  if (parsed.origin === auth.serverName) throw unauthorized('The origin is this server itself');
  if (auth.isAllowed?.(parsed.origin) === false) throw forbidden('This server does not federate with yours');
  return parsed;
}

function contentOf(body: JsonValue | undefined): string | undefined {
  if (body === undefined) return undefined;
  try {
    // Events of old room versions may hold numbers that canonical JSON does not know.
    return canonicalJson(body, { lax: true });
  } catch {
    throw badJson('The body has no canonical form');
  }
}

function unauthorized(message: string): MatrixError {
  return new MatrixError(401, 'M_UNAUTHORIZED', message);
}
