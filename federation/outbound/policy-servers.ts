import { MatrixError } from '@trellis/protocol/errors.ts';
import type { PolicyServers } from '@trellis/rooms/policy-servers.ts';
import type { FederationClient } from './client.ts';
import { FederationError } from './federation-error.ts';

/** Somebody waits, and so does the room. */
const TIMEOUT = 10_000;
const MAX_BYTES = 64 * 1024;

/** https://spec.matrix.org/v1.18/server-server-api/#post_matrixpolicyv1sign */
export function policyServers(client: FederationClient): PolicyServers {
  return {
    async sign(server, event) {
      try {
        return await client.request({
          method: 'POST',
          destination: server,
          path: '/_matrix/policy/v1/sign',
          body: event.pdu,
          timeoutMs: TIMEOUT,
          maxBytes: MAX_BYTES,
          ignoreBackoff: true,
        });
      } catch (error) {
        if (!(error instanceof FederationError)) throw error;
        if (error.status !== 429) throw error.toMatrixError();
        const { retry_after_ms: wait } = error.body;
        throw new MatrixError(429, 'M_LIMIT_EXCEEDED', `${server} is busy`, {
          ...(typeof wait === 'number' ? { retry_after_ms: wait } : {}),
        });
      }
    },
  };
}
