import { serverNoticesRoutes } from '@trellis/client-api/server-notices.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { createRoom } from '@trellis/rooms/create-room.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import { ServerNotices } from '@trellis/rooms/server-notices.ts';
import { Transactions } from '@trellis/rooms/transactions.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { RoomTags } from '@trellis/users/tags.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';

export interface ServerNoticesComposition {
  readonly accounts: Accounts;
  readonly aliases: Aliases;
  readonly membership: Membership;
  readonly tags: RoomTags;
}

/** The user that notices come from. */
export function noticesSender({ config, serverName }: Pick<Core, 'config' | 'serverName'>): string {
  return `@${config.server_notices.localpart}:${serverName}`;
}

export function composeServerNotices(core: Core, parts: ServerNoticesComposition) {
  const { config, db, memberships, rooms } = core;
  const { aliases, membership, tags } = parts;
  const { display_name: displayname, room_name: roomName } = config.server_notices;
  const creation = {
    rooms,
    membership,
    aliases,
    profile: async () => ({ displayname }),
    defaultVersion: config.rooms.default_version,
  };
  const notices = new ServerNotices({
    rooms,
    memberships,
    membership,
    sender: noticesSender(core),
    roomName,
    createRoom: (creator, request) => createRoom(creation, creator, request),
    setTag: (userId, roomId, tag) => tags.set(userId, roomId, tag, {}),
  });
  return {
    clientRoutes: (scope: FastifyInstance) =>
      serverNoticesRoutes(scope, { ...parts, notices, transactions: new Transactions(db) }),
  };
}
