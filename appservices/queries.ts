import { setTimeout as sleep } from 'node:timers/promises';
import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { type AppserviceClient, UnreachableError } from './client.ts';
import type { Appservice, Appservices } from './registry.ts';

/** Milliseconds to wait before each try, and for an answer: the service makes the room or the user meanwhile. */
const TRIES = [0, 250, 1000];
const ANSWER_TIMEOUT_MS = 20_000;
/** How long a service's "no" is believed, in milliseconds: anyone may ask, and as often as they like. */
const NO_TTL_MS = 5_000;
/** How long an answer that somebody waits for already is waited for, in milliseconds. */
const OTHERS_WAIT_MS = 2_000;
/** Questions under way at a time; what is more is answered as if there were no such thing. */
const MAX_ASKING = 500;

type Kind = 'users' | 'rooms';

const ASK = 'appservices/ask';

/**
 * Asks services whether there is a user or a room that nobody here has heard of ("Querying"). Of several processes one
 * asks each question, for all.
 */
export class Queries {
  readonly #services: Appservices;
  readonly #client: AppserviceClient;
  readonly #asking = new Map<string, Promise<boolean>>();
  readonly #no = new RecentlyUsed<string, true>(1000, { ttl: NO_TTL_MS });

  readonly #cluster: Cluster;

  constructor(services: Appservices, client: AppserviceClient, cluster = alone()) {
    this.#services = services;
    this.#client = client;
    this.#cluster = cluster;
    cluster.serve(ASK, ({ kind, id }: { kind: Kind; id: string }) => this.#ask(kind, id), { drained: false });
  }

  /** Whether a service has made the user now. Services that do not answer have not. */
  async madeUser(userId: string): Promise<boolean> {
    try {
      return await this.#askOnce('users', userId);
    } catch (error) {
      if (error instanceof MatrixError) return false;
      throw error;
    }
  }

  /**
   * Whether a service has made a room of that alias now.
   *
   * @throws M_UNKNOWN (408) when a service that may have it does not answer
   */
  madeAlias(alias: string): Promise<boolean> {
    return this.#askOnce('rooms', alias);
  }

  async #askOnce(kind: Kind, id: string): Promise<boolean> {
    if (!this.#cluster.shared) return this.#ask(kind, id);
    if (this.#asked(kind, id).length === 0) return false;
    return this.#cluster.call('appservice', `${kind} ${id}`, ASK, { kind, id });
  }

  /** Services that may have it. */
  #asked(kind: Kind, id: string): Appservice[] {
    return this.#services.all.filter(
      (service) =>
        service.registration.url !== undefined &&
        (kind === 'users' ? service.isInterested(id) : service.aliases.includes(id)),
    );
  }

  async #ask(kind: Kind, id: string): Promise<boolean> {
    const services = this.#asked(kind, id);
    const key = `${kind} ${id}`;
    if (services.length === 0 || this.#no.has(key)) return false;
    const under = this.#asking.get(key);
    // It may be the service itself that looks before it makes what it is asked for: it must not wait for itself.
    if (under) return Promise.race([under, sleep(OTHERS_WAIT_MS, false)]);
    if (this.#asking.size >= MAX_ASKING) return false;
    const asking = this.#askAll(services, kind, id).finally(() => this.#asking.delete(key));
    this.#asking.set(key, asking);
    const made = await asking;
    if (!made) this.#no.set(key, true);
    return made;
  }

  async #askAll(services: readonly Appservice[], kind: string, id: string): Promise<boolean> {
    let unanswered: UnreachableError | undefined;
    for (const service of services)
      try {
        if (await this.#askOne(service, `/${kind}/${encodeURIComponent(id)}`)) return true;
      } catch (error) {
        if (!(error instanceof UnreachableError)) throw error;
        unanswered = error;
      }
    if (unanswered) throw new MatrixError(408, 'M_UNKNOWN', 'The application service does not answer');
    return false;
  }

  async #askOne(service: Appservice, path: string): Promise<boolean> {
    let failure: unknown;
    for (const wait of TRIES) {
      if (wait > 0) await sleep(wait);
      try {
        const { status } = await this.#client.request(service, {
          method: 'GET',
          paths: [`/_matrix/app/v1${path}`, path],
          timeoutMs: ANSWER_TIMEOUT_MS,
        });
        return status === 200;
      } catch (error) {
        if (!(error instanceof UnreachableError)) throw error;
        failure = error;
        // Whoever asks has waited long enough already.
        if (error.timedOut) break;
      }
    }
    throw failure;
  }
}
