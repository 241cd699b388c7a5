import { setTimeout as delay } from 'node:timers/promises';
import type { Cluster, Json } from '@trellis/cluster/cluster.ts';

const MAX_TRIES = 20;
const RETRY_MS = 100;

/** Tells all processes of what is stored already; again and again while these have to agree anew on who is there. */
export async function announce(cluster: Cluster, topic: string, payload: Json): Promise<void> {
  for (let tries = 1; ; tries++)
    try {
      return await cluster.announce(topic, payload);
    } catch (error) {
      if (tries === MAX_TRIES) throw error;
      await delay(RETRY_MS);
    }
}
