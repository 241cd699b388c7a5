import { randomBytes } from 'node:crypto';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { notFound, tooLarge } from '@trellis/protocol/errors.ts';
import '@trellis/cluster/owned-routes.ts';
import type { FastifyRequest } from 'fastify';
import { limitExceeded } from './rate-limits.ts';

export interface RendezvousSession {
  readonly id: string;
  readonly data: string;
  /** Another one after every change, also when the data is the same again. */
  readonly sequence: string;
  readonly changedTs: number;
  readonly expiresTs: number;
}

/** Routes of one session are answered by the process that has it. */
export const OF_SESSION = {
  duty: 'user',
  key: (request: FastifyRequest) => (request.params as { id: string }).id,
} as const;

/** Characters of data (MSC4388: "Maximum payload size"). */
const MAX_DATA = 4096;
/** MSC4388: from 120 to 300 seconds. */
const LIFETIME_MS = 240_000;
const MAX_SESSIONS = 5_000;

/**
 * Places where two devices exchange messages before one of them has signed in: whoever knows the id may read, write
 * and delete. In memory, for minutes, and few: what is stored here is nobody's.
 */
export class RendezvousSessions {
  /** In the order in which they expire. */
  readonly #sessions = new Map<string, RendezvousSession>();
  readonly #now: () => number;
  readonly #max: number;
  readonly #cluster: Cluster | undefined;

  constructor({
    now = Date.now,
    max = MAX_SESSIONS,
    cluster,
  }: { now?: () => number; max?: number; cluster?: Cluster } = {}) {
    this.#now = now;
    this.#max = max;
    this.#cluster = cluster?.shared ? cluster : undefined;
    this.#cluster?.serve('rendezvous.take', (session: RendezvousSession) => {
      if (this.#sessions.size < 2 * max) this.#sessions.set(session.id, session);
      return null;
    });
    this.#cluster?.onHandover({ take: () => this.#handOver() });
  }

  /** @throws M_TOO_LARGE; M_LIMIT_EXCEEDED when there are too many: others' are not ended for it */
  create(data: string): RendezvousSession {
    checkSize(data);
    const now = this.#now();
    this.#removeExpired(now);
    const oldest = this.#sessions.values().next().value;
    if (oldest && this.#sessions.size >= this.#max) throw limitExceeded(oldest.expiresTs - now);
    const session = {
      id: this.#newId(),
      data,
      sequence: newSequence(),
      changedTs: now,
      expiresTs: now + LIFETIME_MS,
    };
    this.#sessions.set(session.id, session);
    return session;
  }

  /** @throws M_NOT_FOUND */
  get(id: string): RendezvousSession {
    const session = this.#sessions.get(id);
    if (!session || session.expiresTs <= this.#now()) throw notFound('There is no such rendezvous session');
    return session;
  }

  /**
   * @returns the changed session, or `undefined` when it is no longer at `sequence`
   * @throws M_NOT_FOUND, M_TOO_LARGE
   */
  update(id: string, sequence: string, data: string): RendezvousSession | undefined {
    const session = this.get(id);
    checkSize(data);
    if (session.sequence !== sequence) return undefined;
    const changed = { ...session, data, sequence: newSequence(), changedTs: this.#now() };
    this.#sessions.set(id, changed);
    return changed;
  }

  /** @throws M_NOT_FOUND */
  delete(id: string): void {
    this.get(id);
    this.#sessions.delete(id);
  }

  /** One that requests are passed on to this process for. */
  #newId(): string {
    for (;;) {
      const id = randomBytes(18).toString('base64url');
      if (!this.#cluster || this.#cluster.owns('user', id)) return id;
    }
  }

  /** Requests for some of the sessions go to other processes from now on. */
  #handOver(): void {
    for (const session of this.#sessions.values()) {
      if (this.#cluster!.owns('user', session.id)) continue;
      this.#sessions.delete(session.id);
      this.#cluster!.call('user', session.id, 'rendezvous.take', { ...session }).catch(() => {});
    }
  }

  #removeExpired(now: number): void {
    for (const { id, expiresTs } of this.#sessions.values()) {
      if (expiresTs > now) return;
      this.#sessions.delete(id);
    }
  }
}

function newSequence(): string {
  return randomBytes(12).toString('base64url');
}

function checkSize(data: string): void {
  if (data.length > MAX_DATA) throw tooLarge(`A rendezvous session holds ${MAX_DATA} characters`);
}
