import { splitStateKey } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { redact } from '@trellis/protocol/redaction.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { isErasable } from './erased-users.ts';
import type { Rooms } from './rooms.ts';
import { visibilityIn } from './visibility.ts';

/** Members of one server that are looked at in one state. */
const MAX_MEMBERS = 1000;

/**
 * Events as JSON texts for another server of the room: whole as far as its users may see them, else redacted, so that
 * the server can still follow the graph (spec: server-server API, "Backfilling and retrieving missing events", and
 * client-server API, "Room history visibility").
 */
export async function jsonForServer(
  rooms: Rooms,
  server: string,
  events: readonly StoredEvent[],
): Promise<string[]> {
  const view = new ServerView(rooms, server);
  const texts: string[] = [];
  for (const event of events)
    texts.push((await view.sees(event)) ? event.json : JSON.stringify(redact(event.pdu, event.version)));
  return texts;
}

/** What one server may see, for as long as one question takes. */
export class ServerView {
  readonly #rooms: Rooms;
  readonly #server: string;
  /** By state snapshot: neighbours mostly have the same. */
  readonly #visibilities = new Map<number, 'all' | 'joined' | 'invited'>();
  readonly #memberships = new Map<number, ReadonlySet<unknown>>();

  constructor(rooms: Rooms, server: string) {
    this.#rooms = rooms;
    this.#server = server;
  }

  async sees(event: StoredEvent): Promise<boolean> {
    return (await this.#mayKnow(event)) && !(await this.#comesAfterErasure(event));
  }

  /** Whether the event's sender was erased before any user of the server could see it. */
  async #comesAfterErasure(event: StoredEvent): Promise<boolean> {
    if (!isErasable(event)) return false;
    const room = await this.#rooms.get(event.roomId);
    const erased = room && (await this.#rooms.parts.erased?.among(room, [event]));
    const erasedAt = erased?.get(event.sender);
    if (!room || erasedAt === undefined) return false;
    for (const [userId, { membership, pos }] of room.members())
      if (membership === 'join' && pos <= erasedAt && serverNameOf(userId) === this.#server) return false;
    if (event.stateBefore === undefined) return true;
    const state = await this.#rooms.parts.snapshots.load(event.stateBefore);
    return !(await this.#membershipsIn(state)).has('join');
  }

  async #mayKnow(event: StoredEvent): Promise<boolean> {
    if (serverNameOf(event.sender) === this.#server) return true;
    // Of outliers other servers know the state events anyway, as they know the state of the room.
    if (event.stateBefore === undefined) return event.stateKey !== undefined;
    const state = await this.#rooms.parts.snapshots.load(event.stateBefore);
    const visibility = await this.#visibility(state);
    if (visibility === 'all' || changesToVisible(event)) return true;
    const memberships = await this.#membershipsIn(state);
    const own = ownMembership(event, this.#server);
    if (memberships.has('join') || own === 'join') return true;
    return visibility === 'invited' && (memberships.has('invite') || own === 'invite');
  }

  async #visibility(state: Snapshot): Promise<'all' | 'joined' | 'invited'> {
    let visibility = this.#visibilities.get(state.id);
    if (!visibility) {
      const setting = await visibilityIn(this.#rooms, state);
      visibility = setting === 'joined' || setting === 'invited' ? setting : 'all';
      this.#visibilities.set(state.id, visibility);
    }
    return visibility;
  }

  async #membershipsIn(state: Snapshot): Promise<ReadonlySet<unknown>> {
    let memberships = this.#memberships.get(state.id);
    if (!memberships) {
      const ids: string[] = [];
      for (const [key, ref] of state.entries()) {
        const [type, userId] = splitStateKey(key);
        if (type !== 'm.room.member' || serverNameOf(userId) !== this.#server) continue;
        if (ids.push(ref.eventId) === MAX_MEMBERS) break;
      }
      const events = await this.#rooms.parts.events.getMany(ids);
      memberships = new Set([...events.values()].map(({ content }) => content.membership));
      this.#memberships.set(state.id, memberships);
    }
    return memberships;
  }
}

/** A change of the setting counts as sent under the laxer of the two. */
function changesToVisible({ type, stateKey, content }: StoredEvent): boolean {
  const setting = content.history_visibility;
  return (
    type === 'm.room.history_visibility' &&
    stateKey === '' &&
    (setting === 'shared' || setting === 'world_readable')
  );
}

function ownMembership({ type, stateKey, content }: StoredEvent, server: string): unknown {
  return type === 'm.room.member' && stateKey !== undefined && serverNameOf(stateKey) === server
    ? content.membership
    : undefined;
}
