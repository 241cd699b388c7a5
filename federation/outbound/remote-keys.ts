import type { RemoteKeyServers } from '@trellis/users/e2ee/remote-device-lists.ts';
import type { FederationClient } from './client.ts';
import { FederationError } from './federation-error.ts';
import { claimKeys, queryKeys, userDevices } from './query-calls.ts';

/** Other servers as the keepers of their users' keys. */
export function remoteKeyServers(client: FederationClient): RemoteKeyServers {
  return {
    async userDevices(server, userId) {
      try {
        return await userDevices(client, server, userId);
      } catch (error) {
        if (error instanceof FederationError && error.kind === 'http' && error.status! < 500)
          return undefined;
        throw error;
      }
    },
    queryKeys: (server, deviceKeys, timeoutMs) => queryKeys(client, server, deviceKeys, timeoutMs),
    claimKeys: (server, oneTimeKeys, timeoutMs) => claimKeys(client, server, oneTimeKeys, timeoutMs),
  };
}
