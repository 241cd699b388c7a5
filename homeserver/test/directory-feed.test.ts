import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { UserDirectory } from '@trellis/users/user-directory.ts';
import type { FastifyBaseLogger } from 'fastify';
import { DirectoryFeed } from '../compose/directory-feed.ts';

type Listener = (pos: number, change: object) => void;

function feedOf(joins = { isAny: false }) {
  const noted: string[] = [];
  let announce: Listener | undefined;
  const rooms = {
    get: async () => ({ member: (userId: string) => ({ membership: 'join', eventId: `$${userId}` }) }),
    parts: {
      serverName: 'here',
      events: {
        cached: () => undefined,
        jsonByIds: async (ids: readonly string[]) =>
          ids.map((id) => JSON.stringify({ state_key: id.slice(1), content: {} })),
      },
      stream: {
        subscribe(listener: Listener) {
          announce = listener;
        },
      },
    },
  };
  const directory = {
    async noteProfiles(profiles: ReadonlyArray<{ userId: string }>) {
      noted.push(...profiles.map(({ userId }) => userId));
    },
  };
  const feed = new DirectoryFeed(
    rooms as unknown as Rooms,
    directory as unknown as UserDirectory,
    joins,
    {} as FastifyBaseLogger,
  );
  const join = (userIds: readonly string[], more: object = {}) =>
    announce!(1, {
      roomId: '!room:far',
      memberships: userIds.map((userId) => ({ userId, before: undefined, after: 'join' })),
      ...more,
    });
  return { feed, noted, join };
}

test('the members of a large room let others pass', async () => {
  const { feed, noted, join } = feedOf();
  const many = Array.from({ length: 1000 }, (_, n) => `@user${n}:far`);
  join(many, { resynced: {} });
  join(['@new:far', '@local:here']);
  for (let i = 0; i < 5; i++) await new Promise(setImmediate);
  assert.deepEqual(noted, ['@new:far']);
  await feed.close();
  assert.deepEqual(noted, ['@new:far', ...many]);
});

test('they make way for who joins a room', async () => {
  const joins = { isAny: true };
  const { feed, noted, join } = feedOf(joins);
  join(['@one:far'], { resynced: {} });
  await delay(1100);
  assert.deepEqual(noted, []);
  joins.isAny = false;
  await delay(150);
  assert.deepEqual(noted, ['@one:far']);
  await feed.close();
});
