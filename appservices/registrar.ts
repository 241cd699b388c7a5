import { randomBytes } from 'node:crypto';
import { badJson, forbidden, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { Lock } from '@trellis/rooms/lock.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Deliveries } from './deliveries.ts';
import { type Registration, RegistrationError, readRegistration } from './registration.ts';
import type { Appservice, Appservices } from './registry.ts';

export interface RegistrarDeps {
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

/** Registers application services while the server runs, and remembers them. */
export class Registrar {
  readonly #deps: RegistrarDeps;
  readonly #ofFiles: ReadonlySet<string>;
  readonly #lock = new Lock();

  /** To be made before `load`: the services that are there then are those of files. */
  constructor(deps: RegistrarDeps) {
    this.#deps = deps;
    this.#ofFiles = new Set(deps.services.all.map(({ id }) => id));
  }

  /** Brings back what was registered before. To be called before the deliveries begin. */
  async load(): Promise<void> {
    const { db, services, log } = this.#deps;
    const rows = await db.query<{ id: string; registration: string }>(
      'SELECT id, registration FROM appservice_registrations ORDER BY created_ts, id',
    );
    for (const { id, registration } of rows)
      try {
        const read = readRegistration(registration, id);
        this.#requireFree(read);
        services.set(read);
      } catch (err) {
        log.warn({ err, appservice: id }, 'a registered application service is left out');
      }
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
  async put(id: string, given: JsonObject): Promise<JsonObject> {
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
      const { db, services, deliveries, makeSender } = this.#deps;
      this.#requireChangeable(id);
      this.#requireFree(registration);
      if (!services.get(id) && services.all.length >= MAX_SERVICES)
        throw new MatrixError(400, 'M_RESOURCE_LIMIT_EXCEEDED', 'There are too many application services');
      await db.query(
        `INSERT INTO appservice_registrations (id, registration, created_ts) VALUES ($1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET registration = EXCLUDED.registration`,
        [id, JSON.stringify(whole), Date.now()],
      );
      await deliveries.remove(id);
      const service = services.set(registration);
      await makeSender(service);
      await deliveries.add(service);
    });
    return whole;
  }

  /** The service's users stay; nobody acts as them any more, and nothing that waits for it is kept. */
  async delete(id: string): Promise<void> {
    await this.#lock.run(async () => {
      const { db, services, deliveries } = this.#deps;
      if (!services.get(id)) throw notFound('No such application service');
      this.#requireChangeable(id);
      await db.query('DELETE FROM appservice_registrations WHERE id = $1', [id]);
      services.delete(id);
      await deliveries.remove(id);
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
