import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import {
  type JsonObject,
  type Pdu,
  type RoomEvent,
  type StateMap,
  stateKeyOf,
} from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import { resolveWith } from '@trellis/protocol/state-resolution/index.ts';
import { installRoom } from '../install-room.ts';
import { Receiver } from '../receive.ts';
import type { RemoteServers } from '../remote-servers.ts';
import type { Room } from '../room.ts';
import { keyOf, type TestEngine, testVerifier } from './engine.ts';

export const FOUNDER = '@founder:far';
export const ALICE = '@alice:here';

export interface Draft {
  readonly sender: string;
  readonly type: string;
  readonly stateKey?: string;
  readonly content?: JsonObject;
  /** The ends of the graph when left out. */
  readonly prev?: readonly RoomEvent[];
  /** Those that the state before asks for when left out. */
  readonly auth?: readonly RoomEvent[];
  readonly ts?: number;
  readonly depth?: number;
  readonly redacts?: string;
}

/**
 * A room's whole graph as a server knows it that has seen everything: signed events, and the states between them by
 * the algorithms in memory. Answers what servers ask each other.
 */
export class RemoteGraph implements RemoteServers {
  readonly version: RoomVersion;
  readonly events = new Map<string, RoomEvent>();
  readonly stateBefore = new Map<string, StateMap>();
  readonly stateAfter = new Map<string, StateMap>();
  readonly rejected = new Set<string>();
  /** Calls that were made, in order: name and event ids. */
  readonly calls: string[] = [];
  /** Events that the server pretends not to have. */
  readonly withheld = new Set<string>();
  /** Answers in place of the true ones. */
  readonly lies: Partial<RemoteServers> = {};
  #ends: RoomEvent[] = [];
  roomId = '';

  constructor(versionId = '11', creator = FOUNDER) {
    this.version = roomVersion(versionId)!;
    this.roomId = this.version.roomIdIsCreateHash ? '' : `!${Math.random().toString(36).slice(2)}:far`;
    const create: JsonObject = { room_version: versionId };
    if (!this.version.implicitCreator) create.creator = creator;
    this.roomId = this.add({ sender: creator, type: 'm.room.create', stateKey: '', content: create }).roomId;
    this.member(creator, 'join');
    const users = this.version.privilegedCreators ? {} : { [creator]: 100 };
    this.add({ sender: creator, type: 'm.room.power_levels', stateKey: '', content: { users } });
    this.add({ sender: creator, type: 'm.room.join_rules', stateKey: '', content: { join_rule: 'public' } });
  }

  get ends(): readonly RoomEvent[] {
    return this.#ends;
  }

  member(userId: string, membership: string, more: Partial<Draft> = {}): RoomEvent {
    return this.add({
      sender: userId,
      type: 'm.room.member',
      stateKey: userId,
      content: { membership },
      ...more,
    });
  }

  message(sender: string, body: string, more: Partial<Draft> = {}): RoomEvent {
    return this.add({ sender, type: 'm.room.message', content: { body }, ...more });
  }

  topic(sender: string, topic: string, more: Partial<Draft> = {}): RoomEvent {
    return this.add({ sender, type: 'm.room.topic', stateKey: '', content: { topic }, ...more });
  }

  /** Builds an event and makes it part of the graph; rejected when the state before it does not allow it. */
  add(draft: Draft): RoomEvent {
    const prev = draft.prev ?? this.#ends;
    const before = this.resolved(prev);
    const server = serverNameOf(draft.sender);
    const content = draft.content ?? {};
    const keys = authEventKeys({ ...draft, content }, this.version);
    const auth = draft.auth?.map(({ eventId }) => eventId) ?? keys.flatMap((key) => before.get(key) ?? []);
    const event = buildEvent(
      {
        ...(this.roomId === '' ? {} : { room_id: this.roomId }),
        sender: draft.sender,
        type: draft.type,
        ...(draft.stateKey === undefined ? {} : { state_key: draft.stateKey }),
        content:
          draft.redacts !== undefined && this.version.redactsInContent
            ? { ...content, redacts: draft.redacts }
            : content,
        ...(draft.redacts !== undefined && !this.version.redactsInContent ? { redacts: draft.redacts } : {}),
        prev_events: prev.map(({ eventId }) => eventId),
        auth_events: auth,
        depth: draft.depth ?? 1 + Math.max(0, ...prev.map(({ depth }) => depth)),
        origin_server_ts: draft.ts ?? Date.now(),
      },
      { version: this.version, key: keyOf(server), serverName: server },
    );
    this.adopt(event, before);
    return event;
  }

  /** Makes an event part of the graph that was made elsewhere. */
  adopt(event: RoomEvent, before = this.resolved(event.prevEvents.map((id) => this.events.get(id)!))): void {
    const at = (type: string, stateKey: string) =>
      this.events.get(before.get(stateKeyOf(type, stateKey)) ?? '');
    const rejected = authorise(event, { get: at }, this.version) !== undefined;
    const after = new Map(before);
    if (rejected) this.rejected.add(event.eventId);
    else if (event.stateKey !== undefined) after.set(stateKeyOf(event.type, event.stateKey), event.eventId);
    this.events.set(event.eventId, event);
    this.stateBefore.set(event.eventId, before);
    this.stateAfter.set(event.eventId, after);
    this.#ends = [event, ...this.#ends.filter(({ eventId }) => !event.prevEvents.includes(eventId))];
  }

  /** The state after some events. */
  resolved(events: readonly RoomEvent[]): StateMap {
    return resolveWith(
      this.version,
      events.map(({ eventId }) => this.stateAfter.get(eventId)!),
      { event: (id) => this.events.get(id) },
    );
  }

  /** Lets a user of the engine's server join. */
  async joinFrom(engine: TestEngine, userId = ALICE): Promise<Room> {
    const join = this.member(userId, 'join');
    const state = [...this.stateBefore.get(join.eventId)!.values()];
    await installRoom(engine.rooms, testVerifier, {
      server: 'far',
      join,
      state: this.#pdus(state),
      authChain: this.#pdus(this.#chain(state)),
    });
    return engine.rooms.require(this.roomId);
  }

  async event(_server: string, eventId: string): Promise<Pdu> {
    this.calls.push(`event ${eventId}`);
    return this.#pdus([eventId])[0] ?? fail();
  }

  async missingEvents(
    server: string,
    roomId: string,
    query: Parameters<RemoteServers['missingEvents']>[2],
  ): Promise<Pdu[]> {
    this.calls.push(`missingEvents ${query.latest.join()}`);
    if (this.lies.missingEvents) return this.lies.missingEvents(server, roomId, query);
    const seen = new Set([...query.earliest, ...query.latest]);
    const found: string[] = [];
    let layer = [...query.latest];
    while (layer.length > 0 && found.length < query.limit) {
      layer = [...new Set(layer.flatMap((id) => this.events.get(id)?.prevEvents ?? []))].filter(
        (id) => !seen.has(id) && this.events.get(id)!.depth >= query.minDepth,
      );
      for (const id of layer) seen.add(id);
      found.push(...layer);
    }
    return this.#pdus(found.slice(0, query.limit).reverse());
  }

  async stateIds(server: string, roomId: string, eventId: string) {
    this.calls.push(`stateIds ${eventId}`);
    if (this.lies.stateIds) return this.lies.stateIds(server, roomId, eventId);
    const stateIds = [...(this.stateBefore.get(eventId) ?? fail()).values()];
    return { stateIds, authChainIds: this.#chain(stateIds) };
  }

  async state(
    _server: string,
    _roomId: string,
    eventId: string,
    take: (pdus: readonly Pdu[]) => Promise<void>,
  ) {
    this.calls.push(`state ${eventId}`);
    const stateIds = [...(this.stateBefore.get(eventId) ?? fail()).values()];
    // What authorises the state comes last, as with most servers.
    await take(this.#pdus(stateIds));
    await take(this.#pdus(this.#chain(stateIds)));
  }

  async eventAuth(_server: string, _roomId: string, eventId: string): Promise<Pdu[]> {
    this.calls.push(`eventAuth ${eventId}`);
    return this.#pdus(this.#chain([eventId]));
  }

  async backfill(_server: string, _roomId: string, from: readonly string[], limit: number): Promise<Pdu[]> {
    this.calls.push(`backfill ${from.join()}`);
    const seen = new Set<string>();
    const queue = [...from];
    while (queue.length > 0 && seen.size < limit) {
      queue.sort((a, b) => this.events.get(b)!.depth - this.events.get(a)!.depth);
      const id = queue.shift()!;
      if (seen.has(id)) continue;
      seen.add(id);
      queue.push(...this.events.get(id)!.prevEvents);
    }
    return this.#pdus([...seen]);
  }

  timestampToEvent(): Promise<never> {
    return fail();
  }

  #pdus(ids: readonly string[]): Pdu[] {
    return ids.flatMap((id) => {
      const event = this.withheld.has(id) ? undefined : this.events.get(id);
      return event ? [event.pdu] : [];
    });
  }

  #chain(ids: readonly string[]): string[] {
    const chain = new Set<string>();
    const queue = [...ids];
    for (let id = queue.pop(); id !== undefined; id = queue.pop())
      for (const auth of this.events.get(id)?.authEvents ?? [])
        if (!chain.has(auth)) {
          chain.add(auth);
          queue.push(auth);
        }
    return [...chain];
  }
}

function fail(): never {
  throw new Error('no answer');
}

export function receiverOf(engine: TestEngine, remote: RemoteServers): Receiver {
  return new Receiver({ rooms: engine.rooms, remote, verifier: testVerifier });
}

/** The room's state as event ids by key. */
export function stateOf(room: Room): Record<string, string> {
  return Object.fromEntries([...room.state.toMap()].sort());
}

export function asObject(state: StateMap): Record<string, string> {
  return Object.fromEntries([...state].sort());
}
