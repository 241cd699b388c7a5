import type { JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { idOfPdu } from '../incoming-event.ts';
import type { RemoteEvents } from '../remote-events.ts';
import type { Room } from '../room.ts';
import type { ThreadQuery } from './query.ts';
import type { ChildrenSummary, ThreadStore } from './thread-store.ts';

/** Asks other servers for a part of a thread. Implemented by federation. */
export interface RemoteThreads {
  eventRelationships(
    server: string,
    roomId: string,
    eventId: string,
    query: ThreadQuery,
  ): Promise<{ readonly events: Pdu[]; readonly authChain: Pdu[] }>;
}

export interface ExploreParts {
  readonly store: ThreadStore;
  readonly remote: RemoteThreads;
  readonly remoteEvents: Pick<RemoteEvents, 'admit'>;
}

/** Servers asked about an event, one after the other, until one knows. */
const MAX_SERVERS = 3;
/** Parts of a thread that one request has fetched. */
const MAX_EXPLORATIONS = 5;
const MAX_REL_TYPES = 20;
const MAX_HASH_LENGTH = 100;

/** Fetches what is missing of a thread, for one request of a local user. */
export class Exploration {
  readonly #parts: ExploreParts;
  readonly #query: ThreadQuery;
  readonly #asked = new Set<string>();

  constructor(parts: ExploreParts, query: ThreadQuery) {
    this.#parts = parts;
    this.#query = query;
  }

  /** Asks the room's servers for children that an event is said to have. Once: others may have what we never get. */
  async children(room: Room, event: StoredEvent): Promise<void> {
    const { store } = this.#parts;
    if ((await store.unexplored(room, [event.eventId])).size === 0) return;
    if (await this.fetch(room, event.eventId, serverNameOf(event.sender)))
      await store.explored(room, [event.eventId]);
  }

  /**
   * Asks the room's servers for an event and its relatives.
   *
   * @param likely a server that is asked first
   * @returns whether any was asked: nobody is about the same event twice
   */
  async fetch(room: Room, eventId: string, likely?: string): Promise<boolean> {
    if (this.#asked.has(eventId) || this.#asked.size >= MAX_EXPLORATIONS || !room.isResident) return false;
    this.#asked.add(eventId);
    const { store, remote, remoteEvents } = this.#parts;
    const others = room.otherServers;
    const first = likely !== undefined && others.includes(likely) ? [likely] : [];
    for (const server of new Set([...first, ...others.slice(0, MAX_SERVERS)])) {
      const answer = await remote
        .eventRelationships(server, room.roomId, eventId, this.#query)
        .catch(() => undefined);
      if (!answer || answer.events.length === 0) continue;
      await remoteEvents.admit(room, [...answer.authChain, ...answer.events]);
      await store.noteClaims(room, claimsIn(room, answer.events));
      break;
    }
    return true;
  }
}

/** What the other server says of the children of the events that it knows. */
function claimsIn(room: Room, pdus: readonly Pdu[]): Map<string, ChildrenSummary> {
  const claims = new Map<string, ChildrenSummary>();
  for (const pdu of pdus) {
    const eventId = idOfPdu(pdu, room.version);
    const summary = summaryIn(pdu.unsigned);
    if (eventId !== undefined && summary) claims.set(eventId, summary);
  }
  return claims;
}

function summaryIn(unsigned: JsonValue | undefined): ChildrenSummary | undefined {
  if (typeof unsigned !== 'object' || unsigned === null || Array.isArray(unsigned)) return undefined;
  const { children, children_hash: hash } = unsigned;
  if (typeof children !== 'object' || children === null || Array.isArray(children)) return undefined;
  if (typeof hash !== 'string' || hash.length > MAX_HASH_LENGTH || hash.includes('\0')) return undefined;
  const counts = Object.entries(children).filter(
    (entry): entry is [string, number] =>
      typeof entry[1] === 'number' && Number.isSafeInteger(entry[1]) && entry[0].length <= 255,
  );
  return { children: Object.fromEntries(counts.slice(0, MAX_REL_TYPES)), hash };
}
