import type { JsonObject } from '@trellis/protocol/event.ts';
import { Notifier } from '@trellis/rooms/notifier.ts';
import { RoomFacts } from '@trellis/rooms/room-facts.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import { Stream, type Streams } from '@trellis/storage/streams.ts';
import { AccountData } from '@trellis/users/account-data.ts';
import { PushRules } from '@trellis/users/push-rules.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { ThreadSubscriptions } from '@trellis/users/thread-subscriptions.ts';
import { Typing } from '@trellis/users/typing.ts';
import type { FastifyInstance } from 'fastify';
import { authenticateRequests } from '../authentication.ts';
import { ClientEvents } from '../client-events.ts';
import { messagesRoutes } from '../messages.ts';
import { slidingSyncRoutes } from '../sliding-sync/routes.ts';
import type { SyncSources } from '../sync/sources.ts';
import { threadSubscriptionRoutes } from '../thread-subscriptions.ts';
import { ask, bareApp } from './api.ts';

// biome-ignore lint/suspicious/noExplicitAny: answers of every shape
export type Json = any;

export const userId = (localpart: string) => `@${localpart}:here`;

const STREAMS = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'];

/** Sliding sync on an engine with a database; an access token is the user's localpart, with `/` a device after it. */
export class SlidingServer {
  readonly engine: TestEngine;
  readonly app: FastifyInstance;
  readonly streams: Streams;
  readonly accountData: AccountData;
  readonly receipts: Receipts;
  readonly typing: Typing;
  readonly sources: SyncSources;

  private constructor(engine: TestEngine) {
    this.engine = engine;
    const { rooms, memberships, db } = engine;
    this.app = bareApp();
    this.streams = Object.fromEntries(
      STREAMS.map((name) => [name, new Stream(name, 0)]),
    ) as unknown as Streams;
    const stream = this.streams.accountData;
    this.accountData = new AccountData({ db, stream, pushRules: new PushRules({ db, stream }) });
    this.receipts = new Receipts({ db, stream: this.streams.receipts });
    this.typing = new Typing(this.streams.typing);
    const threads = new ThreadSubscriptions({ db, stream });
    this.sources = this.#sources();
    authenticateRequests(this.app, async (token) => {
      const [name = '', deviceId = 'DEVICE'] = token.split('/');
      return {
        userId: userId(name),
        deviceId,
        tokenId: token,
        isGuest: false,
        isAdmin: false,
        appserviceId: undefined,
      };
    });
    const relations = async () => new Map<string, string>();
    slidingSyncRoutes(this.app, { sources: this.sources, facts: new RoomFacts(rooms), threads, relations });
    threadSubscriptionRoutes(this.app, { rooms, subscriptions: threads });
    messagesRoutes(this.app, {
      access: { rooms, memberships },
      history: { rooms, backfill: { before: async () => false } },
      clientEvents: new ClientEvents(rooms, relations),
      ignoredUsers: async () => new Set(),
    });
  }

  static async start(): Promise<SlidingServer> {
    return new SlidingServer(await testEngine('here'));
  }

  async close(): Promise<void> {
    this.sources.notifier.close();
    this.typing.close();
    await this.app.close();
    await this.receipts.idle();
    await this.engine.close();
  }

  #sources(): SyncSources {
    const { rooms, memberships } = this.engine;
    return {
      rooms,
      memberships,
      notifier: new Notifier(rooms, this.streams, memberships),
      filter: async () => ({}),
      accountData: (user, from, to) => this.accountData.changes(user, from, to),
      receipts: (room, user, from, to) => this.receipts.contentFor(room, user, from, to),
      typing: (room) => this.typing.in(room),
      toDevice: async () => ({ events: [], upTo: 0, more: false }),
      toDeviceReceived: async () => {},
      deviceListChanges: async () => [],
      keyCounts: async () => ({ oneTimeKeys: {}, unusedFallbackTypes: [] }),
      presence: async () => [],
      presenceOf: () => [],
      presenceEnabled: false,
      touchPresence: () => ({ told: undefined, done: () => {} }),
      unread: async () => ({ notify: 0, highlight: 0, threads: new Map() }),
      ignoredUsers: (user) => this.accountData.ignoredUsers(user),
      hidesInvite: async () => false,
    };
  }

  /** A request of the merged dialect, which must succeed. */
  async sync(user: string, body: object): Promise<Json> {
    const answer = await this.ask(user, 'POST', '/v4/sync', body);
    if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
    return answer.body;
  }

  ask(user: string, method: 'GET' | 'PUT' | 'POST' | 'DELETE', url: string, body?: object) {
    return ask(this.app, method, `/_matrix/client${url}`, { token: user, ...(body && { body }) });
  }

  room(creator: string, request: JsonObject = {}): Promise<string> {
    return this.engine.createRoom(userId(creator), { preset: 'public_chat', room_version: '11', ...request });
  }

  async send(
    user: string,
    roomId: string,
    type: string,
    content: JsonObject,
    stateKey?: string,
  ): Promise<string> {
    const draft = { type, sender: userId(user), content, ...(stateKey !== undefined && { stateKey }) };
    return (await sendEvent(this.engine.rooms, roomId, draft)).eventId;
  }

  say(user: string, roomId: string, body: string, more: JsonObject = {}): Promise<string> {
    return this.send(user, roomId, 'm.room.message', { msgtype: 'm.text', body, ...more });
  }
}

export const bodies = (room: Json): string[] =>
  (room?.timeline ?? []).flatMap((event: Json) => event.content.body ?? []);

/** Types and state keys of the required state. */
export const stateOf = (room: Json): string[] =>
  (room?.required_state ?? []).map((event: Json) => `${event.type} ${event.state_key}`).sort();
