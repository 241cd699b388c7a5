import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { boundedQuery, type ThreadQuery } from '../threading-msc2836/query.ts';
import { walkThread } from '../threading-msc2836/walk.ts';

/** A thread written as parent: children. */
function walkIn(tree: Record<string, string>) {
  const event = (eventId: string) => ({ eventId }) as StoredEvent;
  return async (anchor: string, query: Partial<ThreadQuery>) => {
    const { events, limited } = await walkThread(event(anchor), boundedQuery(query), {
      async parent({ eventId }) {
        const parent = Object.keys(tree).find((id) => tree[id]!.includes(eventId));
        return parent === undefined ? undefined : event(parent);
      },
      children: async ({ eventId }, limit) => [...(tree[eventId] ?? '')].slice(0, limit).map(event),
    });
    return events.map(({ eventId }) => eventId).join('') + (limited ? '…' : '');
  };
}

describe('a walk through a thread', () => {
  //   A
  //  B C
  // DE  F
  const walk = walkIn({ A: 'BC', B: 'DE', C: 'F' });

  it('goes level by level, or branch by branch', async () => {
    assert.equal(await walk('A', {}), 'ABCDEF');
    assert.equal(await walk('A', { depth_first: true }), 'ABDECF');
  });

  it('goes up to the root', async () => {
    assert.equal(await walk('F', { direction: 'up' }), 'FCA');
    assert.equal(await walk('F', { direction: 'up', max_depth: 1 }), 'FC');
  });

  it('keeps to the depth and breadth that are asked for, negative ones meaning none', async () => {
    assert.equal(await walk('A', { max_depth: 1 }), 'ABC');
    assert.equal(await walk('A', { max_breadth: 1 }), 'ABD');
    assert.equal(await walk('A', { max_breadth: -1, max_depth: -1 }), 'ABCDEF');
    assert.equal(await walk('A', { max_depth: 0 }), 'A');
  });

  it('tells whether the limit left something out', async () => {
    assert.equal(await walk('A', { limit: 4 }), 'ABCD…');
    assert.equal(await walk('A', { limit: 6 }), 'ABCDEF');
    assert.equal(await walk('A', { limit: 3, max_depth: 1 }), 'ABC');
  });

  it('puts the parent and the children first where they are asked for, and no event twice', async () => {
    assert.equal(await walk('B', { include_parent: true }), 'BADE');
    assert.equal(await walk('B', { include_parent: true, include_children: true, max_depth: 0 }), 'BADE');
    assert.equal(await walk('B', { include_children: true, direction: 'up' }), 'BDEA');
  });

  it('ends in a circle', async () => {
    const round = walkIn({ A: 'B', B: 'C', C: 'A' });
    assert.equal(await round('A', { max_depth: -1 }), 'ABC');
    assert.equal(await round('A', { max_depth: -1, direction: 'up' }), 'ACB');
  });
});
