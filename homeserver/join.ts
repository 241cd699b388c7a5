import { join } from 'node:path';
import type { Bus } from '@trellis/cluster/bus.ts';
import { RedisBus } from '@trellis/cluster/bus-redis.ts';
import { SocketBus } from '@trellis/cluster/bus-sockets.ts';
import { type ClusterMember, joinCluster, memberId } from '@trellis/cluster/member.ts';
import type { RedisPlace } from '@trellis/cluster/redis-place.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { FastifyBaseLogger } from 'fastify';
import { streamStarts } from './compose/core.ts';
import type { Config } from './config/schema.ts';
import type { Place } from './worker-messages.ts';

/**
 * Joins the other processes of this server, if it may have any: through Redis where the configuration has one, else
 * through sockets in the data folder those of the same supervisor.
 */
export async function joinOthers(
  config: Config,
  place: Place | undefined,
  db: Database,
  log: FastifyBaseLogger,
): Promise<ClusterMember | undefined> {
  const bus = openBus(config, place, log);
  if (!bus) return undefined;
  const { roles } = config.cluster;
  const member = await joinCluster({ bus, db, roles, log, starts: () => streamStarts(db) });
  log.info({ member: member.self, roles }, 'joined the others');
  return member;
}

function openBus(config: Config, place: Place | undefined, log: FastifyBaseLogger): Bus | undefined {
  const self = memberId();
  const { redis, cluster } = config;
  if (redis)
    return new RedisBus({
      self,
      secret: cluster.secret!,
      installation: config.server_name,
      redis: redisPlace(redis),
      log,
    });
  if (place) return new SocketBus({ self, secret: place.secret, folder: join(config.data_dir, 'run'), log });
  return undefined;
}

export function redisPlace(redis: NonNullable<Config['redis']>): RedisPlace {
  const { url, sentinels, nodes, name, username, password } = redis;
  if (url !== undefined) return { url };
  const login = { username, password, tls: redis.tls ? {} : undefined };
  const known = Object.fromEntries(Object.entries(login).filter(([, value]) => value !== undefined));
  return nodes ? { ...known, nodes } : { ...known, sentinels: sentinels!, name };
}
