import type { JsonObject } from '@trellis/protocol/event.ts';
import type { Edu } from './ephemeral-edus.ts';

/** What is known of the devices and keys of local users. */
export interface DeviceUpdates {
  /** EDUs that tell a server what changed of a user in the interval (from, to] of the stream of device lists. */
  edus(
    userId: string,
    destination: string,
    from: number,
    to: number,
  ): Promise<ReadonlyArray<{ readonly eduType: string; readonly content: JsonObject }>>;
  /** Changes of local users in (from, to], oldest first; `servers`: only these are to hear of it. */
  changes(
    from: number,
    to: number,
    limit: number,
  ): Promise<
    ReadonlyArray<{
      readonly pos: number;
      readonly userId: string;
      readonly servers: readonly string[] | null;
    }>
  >;
}

export interface DeviceBatch {
  readonly edus: Edu[];
  /** To be called when the EDUs have been delivered. */
  delivered(): void;
}

/** Users remembered by name; with more of them the stream is read again from where the destination stands. */
const MAX_USERS = 100;
const USERS_IN_TRANSACTION = 20;
const CHANGES_READ = 100;

/**
 * Changes of device lists that one destination lacks: those of some users after a position of the stream. While they
 * are few, the users are known by name; beyond that, and after a restart, only the position is.
 */
export class DeviceBacklog {
  /** Everything up to here is delivered. */
  pos: number;
  /** What the database says of `pos`. */
  stored: number | undefined;
  /** What each user's changes are after and up to; `undefined` when the stream has to be asked. */
  #users: Map<string, { after: number; newest: number }> | undefined;
  #newest: number;

  /** @param users `unknown`: the stream has to be asked what happened after `pos` */
  constructor(pos: number, newest: number, users: 'none' | 'unknown') {
    this.pos = pos;
    this.#newest = newest;
    this.#users = users === 'none' ? new Map() : undefined;
  }

  get isEmpty(): boolean {
    return this.#users ? this.#users.size === 0 : this.pos >= this.#newest;
  }

  add(userId: string, pos: number): void {
    this.#newest = Math.max(this.#newest, pos);
    if (!this.#users) return;
    const known = this.#users.get(userId);
    if (known) known.newest = pos;
    else if (this.#users.size < MAX_USERS) this.#users.set(userId, { after: pos - 1, newest: pos });
    else this.#users = undefined;
  }

  /** @param concerns whether the destination is to hear of a user */
  async next(
    updates: DeviceUpdates,
    destination: string,
    concerns: (userId: string) => Promise<boolean>,
    limit: number,
  ): Promise<DeviceBatch> {
    return this.#users
      ? this.#nextKnown(this.#users, updates, destination, limit)
      : this.#nextRead(updates, destination, concerns, limit);
  }

  async #nextKnown(
    users: Map<string, { after: number; newest: number }>,
    updates: DeviceUpdates,
    destination: string,
    limit: number,
  ): Promise<DeviceBatch> {
    const edus: Edu[] = [];
    const taken: Array<[userId: string, newest: number]> = [];
    for (const [userId, { after, newest }] of [...users].slice(0, USERS_IN_TRANSACTION)) {
      const ofUser = await updates.edus(userId, destination, after, newest);
      if (!fits(edus, ofUser, limit)) break;
      taken.push([userId, newest]);
    }
    return {
      edus,
      delivered: () => {
        for (const [userId, newest] of taken) {
          const user = users.get(userId)!;
          if (user.newest === newest) users.delete(userId);
          else user.after = newest;
        }
        if (users.size === 0 && this.#users === users) this.pos = this.#newest;
      },
    };
  }

  async #nextRead(
    updates: DeviceUpdates,
    destination: string,
    concerns: (userId: string) => Promise<boolean>,
    limit: number,
  ): Promise<DeviceBatch> {
    const edus: Edu[] = [];
    const from = this.pos;
    const upTo = this.#newest;
    const changes = await updates.changes(from, upTo, CHANGES_READ);
    let reached = changes.length < CHANGES_READ ? upTo : changes.at(-1)!.pos;
    const to = reached;
    const seen = new Set<string>();
    let before = from;
    for (const { userId, pos, servers } of changes) {
      const isFor = servers ? servers.includes(destination) : await concerns(userId);
      if (isFor && !seen.has(userId)) {
        seen.add(userId);
        if (!fits(edus, await updates.edus(userId, destination, from, to), limit)) {
          reached = before;
          break;
        }
      }
      before = pos;
    }
    return {
      edus,
      delivered: () => {
        this.pos = Math.max(this.pos, reached);
      },
    };
  }
}

/** Adds what fits. Of more than fits at all, only the end is sent: the other side sees the gap and asks. */
function fits(
  edus: Edu[],
  more: ReadonlyArray<{ readonly eduType: string; readonly content: JsonObject }>,
  limit: number,
): boolean {
  if (edus.length > 0 && edus.length + more.length > limit) return false;
  edus.push(...more.slice(-limit).map(({ eduType, content }) => ({ edu_type: eduType, content })));
  return true;
}
