import type { ConnectionOptions } from 'node:tls';
import { Redis, type RedisOptions } from 'ioredis';

export interface RedisNode {
  readonly host: string;
  readonly port: number;
}

interface RedisLogin {
  readonly username?: string;
  readonly password?: string;
  readonly tls?: ConnectionOptions;
}

/** Where Redis is: one server (`rediss://` for TLS), one watched by Sentinels, or a Cluster. */
export type RedisPlace =
  | { readonly url: string; readonly tls?: ConnectionOptions }
  | (RedisLogin & {
      readonly sentinels: readonly RedisNode[];
      /** What the Sentinels call the group of servers. */
      readonly name: string;
      readonly sentinelUsername?: string;
      readonly sentinelPassword?: string;
    })
  | (RedisLogin & { readonly nodes: readonly RedisNode[] });

/**
 * One connection for pub/sub, which is not opened again when it ends: then another is to be made. In a Cluster any node
 * will do, as what is published at one goes to all.
 *
 * @param node which of the nodes of a Cluster
 */
export function pubSubConnection(place: RedisPlace, node: RedisNode | undefined, name: string): Redis {
  const common: RedisOptions = {
    lazyConnect: true,
    protocol: 2,
    connectionName: name,
    connectTimeout: 2000,
    keepAlive: 5000,
    retryStrategy: null,
    enableOfflineQueue: false,
    autoResubscribe: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
  };
  if ('url' in place) return new Redis(place.url, place.tls ? { ...common, tls: place.tls } : common);
  const { username, password, tls } = place;
  const login = { ...common, username, password, tls };
  if ('nodes' in place) return new Redis({ ...login, ...node });
  return new Redis({
    ...login,
    sentinels: [...place.sentinels],
    name: place.name,
    sentinelUsername: place.sentinelUsername,
    sentinelPassword: place.sentinelPassword,
    ...(tls ? { sentinelTLS: tls, enableTLSForSentinelMode: true } : {}),
    sentinelCommandTimeout: 2000,
    sentinelRetryStrategy: () => null,
    failoverDetector: true,
  });
}
