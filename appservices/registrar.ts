import { randomBytes } from 'node:crypto';
import type { Cluster, Json } from '@trellis/cluster/cluster.ts';
import { badJson, forbidden, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { Lock } from '@trellis/rooms/lock.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Deliveries } from './deliveries.ts';
import { type Registration, RegistrationError, readRegistration } from './registration.ts';
import type { Appservice, Appservices } from './registry.ts';

export interface RegistrarDeps {
  readonly cluster: Cluster;
  readonly db: Queryable;
  readonly services: Appservices;
  readonly deliveries: Deliveries;
  /** Makes the user that the service acts as, if it is not there. */
  readonly makeSender: (service: Appservice) => Promise<void>;
  readonly log: { warn(details: object, message: string): void };
}

/** What is told of a registration: its tokens are not. */
export interface RegistrationSummary {
  readonly id: string;
  readonly url: string | null;
  readonly sender: string;
  /** Those of files can be changed only there. */
  readonly source: 'file' | 'api';
}

const MAX_SERVICES = 1_000;
const PUT = 'appservices/put';
const DELETE = 'appservices/delete';
const CHANGED = 'appservices/changed';
/** What one process does for all. */
const REGISTRAR = 'appservice-registrar';
const RETRY_MS = 1_000;

/**
 * Registers application services while the server runs, and remembers them. Of several processes one makes the
 * changes, and tells the others.
 */
export class Registrar {
  readonly #deps: RegistrarDeps;
  readonly #ofFiles: ReadonlySet<string>;
  readonly #lock = new Lock();
  /** Registrations that are not of files, as JSON. */
  readonly #known = new Map<string, string>();
  #loaded = false;

  /** To be made before `load`: the services that are there then are those of files. */
  constructor(deps: RegistrarDeps) {
    this.#deps = deps;
    this.#ofFiles = new Set(deps.services.all.map(({ id }) => id));
    const { cluster, log } = deps;
    cluster.serve(PUT, async ({ id, given }: { id: string; given: JsonObject }) => {
      return (await this.#put(id, given)) as Json;
    });
    cluster.serve(DELETE, async ({ id }: { id: string }) => {
      await this.#delete(id);
      return undefined;
    });
    cluster.onAnnounce(CHANGED, ({ id, whole }: { id: string; whole: JsonObject | null }) => {
      this.#apply(id, whole && JSON.stringify(whole));
    });
    cluster.onGap(() => {
      if (cluster.shared && this.#loaded)
        this.#reload().catch((err) => {
          log.warn({ err }, 'registered application services could not be read again');
          setTimeout(() => void this.#reload().catch(() => {}), RETRY_MS).unref();
        });
    });
  }

  /** Brings back what was registered before. To be called before the deliveries begin. */
  async load(): Promise<void> {
    this.#loaded = true;
    await this.#reload();
  }

  async #reload(): Promise<void> {
    const rows = await this.#deps.db.query<{ id: string; registration: string }>(
      'SELECT id, registration FROM appservice_registrations ORDER BY created_ts, id',
    );
    const ids = new Set(rows.map(({ id }) => id));
    for (const id of this.#known.keys()) if (!ids.has(id)) this.#apply(id, null);
    for (const { id, registration } of rows) this.#apply(id, registration);
  }

  /** What is registered now, as JSON; `null`: no more. */
  #apply(id: string, registration: string | null): void {
    const { services, deliveries, log } = this.#deps;
    if ((this.#known.get(id) ?? null) === registration || this.#ofFiles.has(id)) return;
    if (registration === null) {
      this.#known.delete(id);
      services.delete(id);
    } else
      try {
        const read = readRegistration(registration, id);
        this.#requireFree(read);
        services.set(read);
        this.#known.set(id, registration);
      } catch (err) {
        log.warn({ err, appservice: id }, 'a registered application service is left out');
      }
    deliveries.changed(id).catch((err) => log.warn({ err, appservice: id }, 'a delivery could not be ended'));
  }

  list(): RegistrationSummary[] {
    return this.#deps.services.all.map((service) => this.#summary(service));
  }

  get(id: string): RegistrationSummary {
    const service = this.#deps.services.get(id);
    if (!service) throw notFound('No such application service');
    return this.#summary(service);
  }

  /**
   * Registers a service, or takes the place of what it was registered as. What waits for it goes on from where it was.
   *
   * @param given as in a file; tokens that it leaves out are made
   * @returns the whole registration, for the service
   */
  put(id: string, given: JsonObject): Promise<JsonObject> {
    const { cluster } = this.#deps;
    if (!cluster.shared) return this.#put(id, given);
    return cluster.call('task', REGISTRAR, PUT, { id, given: given as Json }) as Promise<JsonObject>;
  }

  async #put(id: string, given: JsonObject): Promise<JsonObject> {
    const token = () => randomBytes(32).toString('base64url');
    const before = this.#deps.services.get(id)?.registration;
    const whole: JsonObject = {
      url: null,
      namespaces: {},
      ...given,
      id,
      as_token: given.as_token ?? before?.asToken ?? token(),
      hs_token: given.hs_token ?? before?.hsToken ?? token(),
    };
    const registration = checked(whole);
    await this.#lock.run(async () => {
      const { cluster, db, services, deliveries, makeSender } = this.#deps;
      this.#requireChangeable(id);
      this.#requireFree(registration);
      if (!services.get(id) && services.all.length >= MAX_SERVICES)
        throw new MatrixError(400, 'M_RESOURCE_LIMIT_EXCEEDED', 'There are too many application services');
      await db.query(
        `INSERT INTO appservice_registrations (id, registration, created_ts) VALUES ($1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET registration = EXCLUDED.registration`,
        [id, JSON.stringify(whole), Date.now()],
      );
      await makeSender(services.set(registration));
      this.#known.set(id, JSON.stringify(whole));
      await deliveries.begin(id);
      await cluster.announce(CHANGED, { id, whole: whole as Json });
      await deliveries.changed(id);
    });
    return whole;
  }

  /** The service's users stay; nobody acts as them any more, and nothing that waits for it is kept. */
  async delete(id: string): Promise<void> {
    const { cluster } = this.#deps;
    if (cluster.shared) await cluster.call('task', REGISTRAR, DELETE, { id });
    else await this.#delete(id);
  }

  async #delete(id: string): Promise<void> {
    await this.#lock.run(async () => {
      const { cluster, db, services, deliveries } = this.#deps;
      if (!services.get(id)) throw notFound('No such application service');
      this.#requireChangeable(id);
      await db.query('DELETE FROM appservice_registrations WHERE id = $1', [id]);
      await cluster.announce(CHANGED, { id, whole: null });
      await deliveries.changed(id);
      await deliveries.forgetOthers();
    });
  }

  #summary({ id, registration, senderUserId }: Appservice): RegistrationSummary {
    const source = this.#ofFiles.has(id) ? 'file' : 'api';
    return { id, url: registration.url ?? null, sender: senderUserId, source };
  }

  #requireChangeable(id: string): void {
    if (this.#ofFiles.has(id)) throw forbidden('That application service is registered by a file');
  }

  #requireFree({ id, asToken }: Registration): void {
    this.#requireChangeable(id);
    const other = this.#deps.services.byToken(asToken);
    if (other && other.id !== id)
      throw new MatrixError(400, 'M_INVALID_PARAM', 'as_token: it is that of another application service');
  }
}

function checked(whole: JsonObject): Registration {
  try {
    return readRegistration(JSON.stringify(whole), 'registration');
  } catch (error) {
    if (error instanceof RegistrationError) throw badJson(error.message);
    throw error;
  }
}
