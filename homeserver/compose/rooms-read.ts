import { type AggregateRelations, aggregateRelations } from '@trellis/client-api/aggregations.ts';
import { aliasRoutes } from '@trellis/client-api/aliases.ts';
import { ClientEvents } from '@trellis/client-api/client-events.ts';
import { contextRoutes } from '@trellis/client-api/context.ts';
import { directoryRoutes } from '@trellis/client-api/directory.ts';
import { eventStreamRoutes } from '@trellis/client-api/event-stream.ts';
import { hierarchyRoutes } from '@trellis/client-api/hierarchy.ts';
import { type InitialSyncSources, initialSyncRoutes } from '@trellis/client-api/initial-sync.ts';
import { memberRoutes } from '@trellis/client-api/members.ts';
import { messagesRoutes } from '@trellis/client-api/messages.ts';
import { publicRoomsRoutes } from '@trellis/client-api/public-rooms.ts';
import { relationsRoutes } from '@trellis/client-api/relations.ts';
import { reportRoutes } from '@trellis/client-api/report.ts';
import { roomEventRoutes } from '@trellis/client-api/room-events.ts';
import { roomGraphRoutes } from '@trellis/client-api/room-graph.ts';
import { roomStateRoutes } from '@trellis/client-api/room-state.ts';
import { roomSummaryRoutes } from '@trellis/client-api/room-summary.ts';
import { searchRoutes } from '@trellis/client-api/search.ts';
import { threadRoutes } from '@trellis/client-api/threads.ts';
import { timestampRoutes } from '@trellis/client-api/timestamp.ts';
import { upgradeRoutes } from '@trellis/client-api/upgrade.ts';
import { hierarchyRoutes as federationHierarchyRoutes } from '@trellis/federation/inbound/hierarchy.ts';
import { publicRoomsRoutes as federationPublicRoomsRoutes } from '@trellis/federation/inbound/public-rooms.ts';
import { queryRoutes } from '@trellis/federation/inbound/query.ts';
import { timestampRoutes as federationTimestampRoutes } from '@trellis/federation/inbound/timestamp.ts';
import { remoteAliases, remotePublicRooms, remoteSpaces } from '@trellis/federation/outbound/remote-rooms.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import type { CreateRoomParts } from '@trellis/rooms/create-room.ts';
import { Hierarchies } from '@trellis/rooms/hierarchy.ts';
import type { HistoryParts, HistorySource } from '@trellis/rooms/history.ts';
import { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import { Relations } from '@trellis/rooms/relations.ts';
import { Reports } from '@trellis/rooms/reports.ts';
import { RoomInspector } from '@trellis/rooms/room-graph/room-inspector.ts';
import { SearchIndex } from '@trellis/rooms/search-index.ts';
import { type CarryOver, followUpgrades } from '@trellis/rooms/successors.ts';
import type { RemoteTimestamps } from '@trellis/rooms/timestamp.ts';
import type { Profiles } from '@trellis/users/profiles.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

/** What application services reserve and may act as. */
export interface RoomAppservices {
  exclusiveAliasOwner(alias: string): string | undefined;
  mayHaveAlias(appserviceId: string, alias: string): boolean;
  actsAs(appserviceId: string, userId: string): boolean;
}

export interface RoomsReadParts {
  readonly transport: Pick<FederationTransport, 'client'>;
  readonly remote: RemoteTimestamps;
  readonly backfill: HistorySource;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
  /** Takes a user's push rules, tags and direct chats along to a room's replacement. */
  readonly carryOver: CarryOver;
  readonly appservices?: RoomAppservices;
}

export interface RoomsRead {
  readonly aliases: Aliases;
  readonly publicRooms: PublicRooms;
  readonly clientEvents: ClientEvents;
  readonly history: HistoryParts;
  /** `unsigned.m.relations`, for syncs. */
  readonly relations: AggregateRelations;
  clientRoutes(
    app: FastifyInstance,
    parts: { readonly createRoom: CreateRoomParts; readonly sources: InitialSyncSources },
  ): void;
  /** Routes for servers that sign their requests. */
  federationRoutes(app: FastifyInstance, parts: { readonly profiles: Profiles }): void;
}

const noAppservices: RoomAppservices = {
  exclusiveAliasOwner: () => undefined,
  mayHaveAlias: () => false,
  actsAs: () => false,
};

/** All that is read of rooms: history, state, relations, directories, spaces, search. */
export function composeRoomsRead(core: Core, parts: RoomsReadParts): RoomsRead {
  const { db, history: replicas, rooms, memberships, notifier, serverName, log } = core;
  const { ignoredUsers, remote, appservices = noAppservices } = parts;
  const { client } = parts.transport;
  const aliases = new Aliases(db, rooms, remoteAliases(client));
  const publicRooms = new PublicRooms(db, rooms);
  const hierarchies = new Hierarchies(rooms, memberships, remoteSpaces(client));
  const relations = new Relations(db, rooms, replicas);
  const aggregate = aggregateRelations({ rooms, relations, ignoredUsers });
  const clientEvents = new ClientEvents(rooms, aggregate);
  const index = new SearchIndex(db, rooms, replicas);
  const backfill: HistorySource = {
    async before(room, pos, limit) {
      const came = await parts.backfill.before(room, pos, limit);
      if (came) await index.backfilled(room.nid);
      return came;
    },
  };
  const history = { rooms, backfill };
  const access = { rooms, memberships };
  followUpgrades(
    rooms,
    (userId) => serverNameOf(userId) === serverName,
    parts.carryOver,
    (err) => log.error({ err }, 'taking settings along to an upgraded room failed'),
  );

  return {
    aliases,
    publicRooms,
    clientEvents,
    history,
    relations: aggregate,
    clientRoutes(app, { createRoom, sources }) {
      messagesRoutes(app, { access, history, clientEvents, ignoredUsers });
      contextRoutes(app, { rooms, history, clientEvents, ignoredUsers });
      roomEventRoutes(app, { rooms, clientEvents });
      roomGraphRoutes(app, new RoomInspector(rooms));
      roomStateRoutes(app, access);
      memberRoutes(app, { access, actsAs: appservices.actsAs });
      relationsRoutes(app, { rooms, relations, clientEvents, ignoredUsers });
      threadRoutes(app, { access, relations, clientEvents, ignoredUsers });
      aliasRoutes(app, { access, aliases, namespaces: appservices });
      directoryRoutes(app, { rooms, aliases, publicRooms });
      publicRoomsRoutes(app, { publicRooms, remote: remotePublicRooms(client), serverName });
      hierarchyRoutes(app, hierarchies);
      roomSummaryRoutes(app, { rooms, aliases, hierarchies });
      timestampRoutes(app, access, { rooms, remote, backfill });
      upgradeRoutes(app, createRoom);
      reportRoutes(app, { rooms, reports: new Reports(db, core.ids) });
      searchRoutes(app, { rooms, access, history, clientEvents, ignoredUsers, index });
      initialSyncRoutes(app, { access, history, clientEvents, notifier, sources, ignoredUsers });
      eventStreamRoutes(app, { access, clientEvents, notifier });
    },
    federationRoutes(app, { profiles }) {
      federationPublicRoomsRoutes(app, publicRooms);
      queryRoutes(app, { serverName, aliases, profiles });
      federationHierarchyRoutes(app, rooms);
      federationTimestampRoutes(app, rooms);
    },
  };
}
