import { getHeapStatistics } from 'node:v8';

/**
 * How many things fit into a part of the heap that this process may have at the most: for caches of what others make as
 * large as they like.
 *
 * @param share of the heap, 0 to 1
 * @param bytes that each takes, about
 */
export function fitIntoHeap(share: number, bytes: number): number {
  return Math.floor((getHeapStatistics().heap_size_limit * share) / bytes);
}
