import { randomBytes } from 'node:crypto';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Positions } from '@trellis/rooms/notifier.ts';
import { LRUCache } from 'lru-cache';
import { posToken } from '../sync/token.ts';
import type { RoomConfig } from './required-state.ts';

/** How much of something of a room a client has: all up to where the connection stands, or up to a position. */
export type Sent = 'live' | number;

/** Of which rooms the client has what: their events, their receipts, their account data. */
export type Ledgers = { readonly [ledger in LedgerName]: ReadonlyMap<string, Sent> };
export type LedgerName = 'events' | 'receipts' | 'accountData';

/** What an answer changes of the connection, once the client shows that it got the answer. */
export class Changes {
  readonly ledgers: Record<LedgerName, Map<string, Sent | undefined>> = {
    events: new Map(),
    receipts: new Map(),
    accountData: new Map(),
  };
  readonly configs = new Map<string, RoomConfig>();
  /** Members by room whose events the client got, and those of whom it has an old event. */
  readonly members = new Map<string, { got: Iterable<string>; outdated: Iterable<string> }>();
}

/** Rooms of a connection whose lazily loaded members are remembered, and how many of each. Losing them repeats events. */
const MAX_MEMBER_ROOMS = 500;
const MAX_MEMBERS = 1_000;
const MAX_CONFIGS = 100;

/**
 * What a client has been sent over one connection (MSC4186). An answer counts as received only with the next request:
 * until then the request before it can be made again, and is answered anew.
 */
export class Connection {
  readonly #id = randomBytes(6).toString('base64url');
  #answers = 0;
  /** Where the client stands; `undefined` before it got anything. */
  from: Positions | undefined;
  #pos: string | undefined;
  #pending: { pos: string; to: Positions; changes: Changes } | undefined;
  readonly #ledgers: Record<LedgerName, Map<string, Sent>> = {
    events: new Map(),
    receipts: new Map(),
    accountData: new Map(),
  };
  readonly configs = new Map<string, RoomConfig>();
  readonly #distinctConfigs = new Map<string, RoomConfig>();
  readonly #members = new RecentlyUsed<string, Set<string>>(MAX_MEMBER_ROOMS);
  /** Ends the request under way: a client has only one, so that it has given that one up when another comes. */
  #underWay: AbortController | undefined;

  get ledgers(): Ledgers {
    return this.#ledgers;
  }

  /** Roughly what it takes of memory, in rooms. */
  get size(): number {
    const { events, receipts, accountData } = this.#ledgers;
    return 10 + events.size + receipts.size + accountData.size;
  }

  gotMember(roomId: string, userId: string): boolean {
    return this.#members.get(roomId)?.has(userId) === true;
  }

  /** A request begins, where the client says it stands. @throws M_UNKNOWN_POS */
  begin(pos: string | undefined): AbortController {
    if (pos !== this.#pos) {
      if (pos === undefined || pos !== this.#pending?.pos) throw unknownPos();
      this.#commit();
    }
    this.#underWay?.abort();
    this.#underWay = new AbortController();
    return this.#underWay;
  }

  /** Nothing is told to the client, and it lacks nothing up to there. */
  advance(request: AbortController, to: Positions, changes: Changes): void {
    if (request !== this.#underWay) return;
    this.#apply(changes);
    this.from = to;
  }

  /** An answer is about to be sent. @returns its `pos` */
  answer(request: AbortController, to: Positions, changes: Changes): string {
    // Nobody waits for the answer to a request that another took the place of.
    if (request !== this.#underWay) return this.#pos ?? posToken(to, `${this.#id}.0`);
    this.#answers++;
    const pos = posToken(to, `${this.#id}.${this.#answers}`);
    this.#pending = { pos, to, changes };
    return pos;
  }

  end(request: AbortController): void {
    if (request === this.#underWay) this.#underWay = undefined;
  }

  #commit(): void {
    const { pos, to, changes } = this.#pending!;
    this.#apply(changes);
    this.#pending = undefined;
    this.from = to;
    this.#pos = pos;
  }

  #apply({ ledgers, configs, members }: Changes): void {
    for (const name of ['events', 'receipts', 'accountData'] as const)
      for (const [roomId, sent] of ledgers[name])
        if (sent === undefined) this.#ledgers[name].delete(roomId);
        else this.#ledgers[name].set(roomId, sent);
    for (const [roomId, config] of configs) this.configs.set(roomId, this.#shared(config));
    for (const [roomId, { got, outdated }] of members) {
      let known = this.#members.get(roomId);
      if (!known || known.size > MAX_MEMBERS) {
        known = new Set();
        this.#members.set(roomId, known);
      }
      for (const userId of outdated) known.delete(userId);
      for (const userId of got) known.add(userId);
    }
    for (const [roomId, sent] of ledgers.events) if (sent === undefined) this.#forget(roomId);
  }

  /** One object for all rooms of which the same is shown. */
  #shared(config: RoomConfig): RoomConfig {
    const known = this.#distinctConfigs.get(config.key);
    if (known) return known;
    if (this.#distinctConfigs.size >= MAX_CONFIGS) this.#distinctConfigs.clear();
    this.#distinctConfigs.set(config.key, config);
    return config;
  }

  #forget(roomId: string): void {
    this.configs.delete(roomId);
    this.#members.delete(roomId);
  }
}

function unknownPos(): MatrixError {
  return new MatrixError(400, 'M_UNKNOWN_POS', 'The connection is not known any more: begin a new one');
}

/** Connections of one user, over all devices; the least used make room for others. */
const MAX_PER_USER = 20;
/** Rooms in all connections together. */
const MAX_SIZE = 3_000_000;

export interface ConnectionName {
  readonly userId: string;
  readonly deviceId: string;
  readonly connId: string;
}

/** The connections of all clients, in memory: a client whose connection is lost begins a new one. */
export class Connections {
  readonly #users = new LRUCache<string, Map<string, Connection>>({
    maxSize: MAX_SIZE,
    sizeCalculation: (connections) => sizeOf(connections),
  });

  /** A new connection takes the place of one of the same name. */
  create(name: ConnectionName): Connection {
    const connections = this.#users.get(name.userId) ?? new Map<string, Connection>();
    const key = keyOf(name);
    connections.delete(key);
    const connection = new Connection();
    connections.set(key, connection);
    if (connections.size > MAX_PER_USER) connections.delete(connections.keys().next().value!);
    this.#users.delete(name.userId);
    this.#users.set(name.userId, connections);
    return connection;
  }

  /** @throws M_UNKNOWN_POS */
  get(name: ConnectionName): Connection {
    const connections = this.#users.get(name.userId);
    const key = keyOf(name);
    const connection = connections?.get(key);
    if (!connections || !connection) throw unknownPos();
    connections.delete(key);
    connections.set(key, connection);
    return connection;
  }

  /** The connection has grown. */
  measure({ userId }: ConnectionName): void {
    const connections = this.#users.peek(userId);
    if (!connections) return;
    // Only what is new to the cache gets measured.
    this.#users.delete(userId);
    this.#users.set(userId, connections);
  }
}

function sizeOf(connections: ReadonlyMap<string, Connection>): number {
  let size = 1;
  for (const connection of connections.values()) size += connection.size;
  return size;
}

function keyOf({ deviceId, connId }: ConnectionName): string {
  return `${deviceId} ${connId}`;
}
