import type { JsonObject } from '@trellis/protocol/event.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import type { CreateRoomParts } from '@trellis/rooms/create-room.ts';
import { Hierarchies, type RemoteSpaces } from '@trellis/rooms/hierarchy.ts';
import type { HistorySource } from '@trellis/rooms/history.ts';
import { Notifier } from '@trellis/rooms/notifier.ts';
import { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import { Relations } from '@trellis/rooms/relations.ts';
import { Reports } from '@trellis/rooms/reports.ts';
import { SearchIndex } from '@trellis/rooms/search-index.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import type { RemoteTimestamps } from '@trellis/rooms/timestamp.ts';
import { Stream, type Streams } from '@trellis/storage/streams.ts';
import type { FastifyInstance } from 'fastify';
import { aggregateRelations } from '../aggregations.ts';
import { aliasRoutes } from '../aliases.ts';
import { authenticateRequests } from '../authentication.ts';
import { ClientEvents } from '../client-events.ts';
import { contextRoutes } from '../context.ts';
import { directoryRoutes } from '../directory.ts';
import { eventStreamRoutes } from '../event-stream.ts';
import { hierarchyRoutes } from '../hierarchy.ts';
import { initialSyncRoutes } from '../initial-sync.ts';
import { memberRoutes } from '../members.ts';
import { messagesRoutes } from '../messages.ts';
import { publicRoomsRoutes } from '../public-rooms.ts';
import { relationsRoutes } from '../relations.ts';
import { reportRoutes } from '../report.ts';
import { roomEventRoutes } from '../room-events.ts';
import { roomStateRoutes } from '../room-state.ts';
import { roomSummaryRoutes } from '../room-summary.ts';
import { searchRoutes } from '../search.ts';
import { threadRoutes } from '../threads.ts';
import { timestampRoutes } from '../timestamp.ts';
import { upgradeRoutes } from '../upgrade.ts';
import { ask, bareApp } from './api.ts';

const SERVER = 'here';

/** What other servers say, for a test to set. */
export interface Others {
  backfill: HistorySource['before'];
  timestamp: RemoteTimestamps['timestampToEvent'];
  hierarchy: RemoteSpaces['hierarchy'];
}

/** All routes that read rooms, on an engine with a database; an access token is the user's localpart. */
export class RoomReading {
  readonly engine: TestEngine;
  readonly app: FastifyInstance;
  readonly others: Others = {
    backfill: async () => false,
    timestamp: async () => {
      throw new Error('no other server knows');
    },
    hierarchy: async () => undefined,
  };
  readonly ignored = new Map<string, Set<string>>();
  readonly createParts: CreateRoomParts;

  private constructor(engine: TestEngine) {
    this.engine = engine;
    this.app = bareApp();
    const { rooms, db } = engine;
    const aliases = new Aliases(db, rooms, async () => undefined);
    const membership = engine.membership();
    this.createParts = { rooms, membership, aliases, profile: async () => ({}), defaultVersion: '11' };
    this.#routes(aliases);
  }

  static async start(): Promise<RoomReading> {
    return new RoomReading(await testEngine(SERVER));
  }

  async close(): Promise<void> {
    await this.app.close();
    await this.engine.close();
  }

  get(user: string, url: string) {
    return ask(this.app, 'GET', `/_matrix/client${url}`, { token: user });
  }

  put(user: string, url: string, body: object) {
    return ask(this.app, 'PUT', `/_matrix/client${url}`, { token: user, body });
  }

  post(user: string, url: string, body: object) {
    return ask(this.app, 'POST', `/_matrix/client${url}`, { token: user, body });
  }

  delete(user: string, url: string) {
    return ask(this.app, 'DELETE', `/_matrix/client${url}`, { token: user });
  }

  async say(user: string, roomId: string, body: string, more: JsonObject = {}): Promise<string> {
    const content = { msgtype: 'm.text', body, ...more };
    return (await this.send(user, roomId, 'm.room.message', content)).eventId;
  }

  send(user: string, roomId: string, type: string, content: JsonObject, stateKey?: string) {
    const draft = { type, sender: userId(user), content, ...(stateKey !== undefined && { stateKey }) };
    return sendEvent(this.engine.rooms, roomId, draft);
  }

  redact(user: string, roomId: string, redacts: string) {
    return sendEvent(this.engine.rooms, roomId, {
      type: 'm.room.redaction',
      sender: userId(user),
      content: {},
      redacts,
    });
  }

  #routes(aliases: Aliases): void {
    const { app, others } = this;
    const { rooms, memberships, db } = this.engine;
    authenticateRequests(app, async (token) => ({
      userId: userId(token),
      deviceId: 'DEVICE',
      tokenId: token,
      isGuest: token === 'guest',
      isAdmin: token === 'admin',
      appserviceId: token === 'bridge' ? 'bridge' : undefined,
    }));
    const ignoredUsers = async (id: string) => this.ignored.get(id) ?? new Set<string>();
    const access = { rooms, memberships };
    const backfill: HistorySource = { before: (...args) => others.backfill(...args) };
    const history = { rooms, backfill };
    const relations = new Relations(db, rooms);
    const clientEvents = new ClientEvents(rooms, aggregateRelations({ rooms, relations, ignoredUsers }));
    const publicRooms = new PublicRooms(db, rooms);
    const remote: RemoteTimestamps = { timestampToEvent: (...args) => others.timestamp(...args) };
    const hierarchies = new Hierarchies(rooms, memberships, {
      hierarchy: (...args) => others.hierarchy(...args),
    });
    const notifier = new Notifier(rooms, streams(), memberships);
    const sources = { accountData: async () => [], presence: async () => [], hidesInvite: async () => false };
    messagesRoutes(app, { access, history, clientEvents, ignoredUsers });
    contextRoutes(app, { rooms, history, clientEvents, ignoredUsers });
    roomEventRoutes(app, { rooms, clientEvents });
    roomStateRoutes(app, access);
    memberRoutes(app, { access, actsAs: (id, user) => id === 'bridge' && user.startsWith('@bridge_') });
    relationsRoutes(app, { rooms, relations, clientEvents, ignoredUsers });
    threadRoutes(app, { access, relations, clientEvents, ignoredUsers });
    aliasRoutes(app, {
      access,
      aliases,
      namespaces: {
        exclusiveAliasOwner: (alias) => (alias.startsWith('#bridge_') ? 'bridge' : undefined),
        mayHaveAlias: (id, alias) => id === 'bridge' && alias.startsWith('#bridge_'),
      },
    });
    directoryRoutes(app, { rooms, aliases, publicRooms });
    publicRoomsRoutes(app, {
      publicRooms,
      remote: { list: async () => ({ chunk: [] }) },
      serverName: SERVER,
    });
    hierarchyRoutes(app, hierarchies);
    roomSummaryRoutes(app, { rooms, aliases, hierarchies });
    timestampRoutes(app, access, { rooms, remote, backfill });
    upgradeRoutes(app, this.createParts);
    reportRoutes(app, { rooms, reports: new Reports(db, rooms.parts.ids) });
    searchRoutes(app, {
      rooms,
      access,
      history,
      clientEvents,
      ignoredUsers,
      index: new SearchIndex(db, rooms),
    });
    initialSyncRoutes(app, { access, history, clientEvents, notifier, sources, ignoredUsers });
    eventStreamRoutes(app, { access, clientEvents, notifier });
  }
}

export const userId = (localpart: string) => `@${localpart}:${SERVER}`;

function streams(): Streams {
  const names = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'];
  return Object.fromEntries(names.map((name) => [name, new Stream(name, 0)])) as unknown as Streams;
}
