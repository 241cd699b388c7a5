import { stateKeyOf } from '@trellis/protocol/event.ts';
import { type PowerLevels, powerLevels } from '@trellis/protocol/power-levels.ts';
import {
  type CompiledRules,
  type EventView,
  evaluate,
  flattenEvent,
  type PushOutcome,
} from '@trellis/protocol/push-rules/index.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** The push rules of local users. Implemented by `users/`. */
export interface UserPushRules {
  /** At once when they are in memory. */
  compiled(userId: string): CompiledRules | Promise<CompiledRules>;
  /** Whose messages the user does not get (spec: "Ignoring Users"), and so no notifications of. */
  ignoredUsers(userId: string): Promise<ReadonlySet<string>>;
  /** Which threads the user follows (MSC4306); `undefined` for users whose clients do not know of that. At once when in memory. */
  subscribedTo?(userId: string): SubscribedTo | undefined | Promise<SubscribedTo | undefined>;
}

type SubscribedTo = (roomId: string, thread: string) => boolean;

/** What a user's push rules say of an event of the room that this was made for. */
export type Evaluate = (event: StoredEvent) => PushOutcome;

const NO_NOTIFICATION: PushOutcome = { notify: false, highlight: false, actions: [], ruleId: undefined };

const MAX_VIEWS = 10_000;
const MAX_NAMES = 100_000;

/**
 * Push rules at work. What an event looks like to the rules is made out once for all users, and most users share one
 * set of rules, so that one more user costs no more than a look for their name in the text.
 */
export class PushEvaluation {
  readonly #rooms: Rooms;
  readonly #rules: UserPushRules;
  readonly #views = new RecentlyUsed<string, EventView>(MAX_VIEWS);
  /** Display names by the id of the member event that has them. */
  readonly #names = new RecentlyUsed<string, string>(MAX_NAMES);
  readonly #levels = new WeakMap<Room, { eventId: string | undefined; levels: PowerLevels }>();

  constructor(rooms: Rooms, rules: UserPushRules) {
    this.#rooms = rooms;
    this.#rules = rules;
  }

  /**
   * Makes ready to evaluate events for a user. Of the room the rules see how it is now: an event that waited to be
   * looked at may find another number of members, which no predefined rule lets decide whether there is a
   * notification.
   */
  async forUser(room: Room, userId: string): Promise<Evaluate> {
    const found = this.#rules.compiled(userId);
    const rules = found instanceof Promise ? await found : found;
    const displayName = this.#knownName(room, userId) ?? (await this.#readName(room, userId));
    const levels = this.#knownLevels(room) ?? (await this.#readLevels(room));
    const ignored = await this.#rules.ignoredUsers(userId);
    const follows = this.#rules.subscribedTo?.(userId);
    const user = { userId, displayName, subscribedTo: follows instanceof Promise ? await follows : follows };
    return (event) =>
      ignored.has(event.sender) ? NO_NOTIFICATION : evaluate(rules, this.#view(room, event, levels), user);
  }

  #view(room: Room, event: StoredEvent, levels: PowerLevels): EventView {
    let view = this.#views.get(event.eventId);
    if (!view) {
      view = flattenEvent(event, {
        memberCount: room.count('join'),
        get senderPowerLevel() {
          return levels.user(event.sender);
        },
        notificationLevel: (key) => levels.notifications(key),
      });
      this.#views.set(event.eventId, view);
    }
    return view;
  }

  #knownName(room: Room, userId: string): string | undefined {
    const member = room.member(userId);
    return member ? this.#names.get(member.eventId) : '';
  }

  async #readName(room: Room, userId: string): Promise<string> {
    const member = room.member(userId);
    const event = member && (await this.#rooms.parts.events.get(member.eventId));
    const name = event?.content.displayname;
    const displayName = typeof name === 'string' ? name : '';
    if (member) this.#names.set(member.eventId, displayName);
    return displayName;
  }

  #knownLevels(room: Room): PowerLevels | undefined {
    const known = this.#levels.get(room);
    return known?.eventId === room.state.get('m.room.power_levels', '')?.eventId ? known?.levels : undefined;
  }

  async #readLevels(room: Room): Promise<PowerLevels> {
    const { state } = room;
    const loaded = await loadState(this.#rooms, state, [
      stateKeyOf('m.room.create', ''),
      stateKeyOf('m.room.power_levels', ''),
    ]);
    const create = loaded.get('m.room.create', '');
    const content = loaded.get('m.room.power_levels', '')?.content;
    const levels = powerLevels(content, create ?? { sender: '', content: {} }, room.version);
    this.#levels.set(room, { eventId: state.get('m.room.power_levels', '')?.eventId, levels });
    return levels;
  }
}
