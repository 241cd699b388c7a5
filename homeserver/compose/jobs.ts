import type { Jobs } from '@trellis/cluster/jobs.ts';
import { BullJobs } from '@trellis/cluster/jobs-bullmq.ts';
import { redisPlace } from '../join.ts';
import type { Core } from './core.ts';

/**
 * Jobs that processes do for each other, where they meet at a Redis; `undefined`: each does its own. To be called
 * first: they begin once everything else has said what it does.
 */
export function composeJobs({ config, log, onReady, onClose }: Core): Jobs | undefined {
  if (!config.redis) return undefined;
  const jobs = new BullJobs({
    redis: redisPlace(config.redis),
    installation: config.server_name,
    works: config.cluster.roles.includes('jobs'),
    log,
  });
  onReady(() => jobs.start());
  onClose(() => jobs.close());
  return jobs;
}
