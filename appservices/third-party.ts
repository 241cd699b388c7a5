import type { JsonObject } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { type AppserviceClient, UnreachableError } from './client.ts';
import type { Appservice, Appservices } from './registry.ts';

type Fields = Readonly<Record<string, string>>;
type Kind = 'location' | 'user';

const TIMEOUT_MS = 10_000;
/** How long what a service says of a protocol is believed, in milliseconds. */
const PROTOCOL_TTL_MS = 60_000;
/** Protocols whose description is kept. */
const MAX_PROTOCOLS = 500;
/** What one question can bring of all services together. */
const MAX_FOUND = 1000;

/** What bridges know of the networks that they lead to ("Third-party networks"). */
export class AppserviceNetworks {
  readonly #registered: Appservices;
  readonly #client: AppserviceClient;
  readonly #described = new RecentlyUsed<string, { description: JsonObject | undefined }>(MAX_PROTOCOLS, {
    ttl: PROTOCOL_TTL_MS,
  });

  constructor(services: Appservices, client: AppserviceClient) {
    this.#registered = services;
    this.#client = client;
  }

  get #services(): Appservice[] {
    return this.#registered.all.filter(({ registration }) => registration.url !== undefined);
  }

  /** Where several services serve one protocol, their instances go together. */
  async protocols(): Promise<Record<string, JsonObject>> {
    const protocols: Record<string, JsonObject> = Object.create(null);
    const described = await Promise.all(
      this.#services.flatMap((service) =>
        service.registration.protocols.map(async (name) => ({
          name,
          description: await this.#describe(service, name),
        })),
      ),
    );
    for (const { name, description } of described) {
      if (!description) continue;
      const known = protocols[name];
      const instances = [...instancesOf(known), ...instancesOf(description)];
      protocols[name] = known ? { ...known, instances } : description;
    }
    return protocols;
  }

  locations(protocol: string, fields: Fields): Promise<JsonObject[]> {
    return this.#find('location', protocol, fields);
  }

  users(protocol: string, fields: Fields): Promise<JsonObject[]> {
    return this.#find('user', protocol, fields);
  }

  locationsByAlias(alias: string): Promise<JsonObject[]> {
    return this.#askAll(this.#withProtocols(), '/thirdparty/location', { alias }, isLocation);
  }

  usersById(userId: string): Promise<JsonObject[]> {
    return this.#askAll(this.#withProtocols(), '/thirdparty/user', { userid: userId }, isUser);
  }

  #withProtocols(): Appservice[] {
    return this.#services.filter(({ registration }) => registration.protocols.length > 0);
  }

  #find(kind: Kind, protocol: string, fields: Fields): Promise<JsonObject[]> {
    const services = this.#services.filter(({ registration }) => registration.protocols.includes(protocol));
    const path = `/thirdparty/${kind}/${encodeURIComponent(protocol)}`;
    return this.#askAll(services, path, fields, kind === 'user' ? isUser : isLocation);
  }

  async #askAll(
    services: readonly Appservice[],
    path: string,
    query: Fields,
    isRight: (found: JsonObject) => boolean,
  ): Promise<JsonObject[]> {
    const answers = await Promise.all(services.map((service) => this.#get(service, path, query)));
    return answers
      .flatMap((answer) => (Array.isArray(answer) ? (answer as unknown[]) : []))
      .filter((found): found is JsonObject => isObject(found) && isRight(found))
      .slice(0, MAX_FOUND);
  }

  async #describe(service: Appservice, protocol: string): Promise<JsonObject | undefined> {
    const key = JSON.stringify([service.id, protocol]);
    const known = this.#described.get(key);
    if (known) return known.description;
    const answer = await this.#get(service, `/thirdparty/protocol/${encodeURIComponent(protocol)}`, {});
    const description = isObject(answer) ? withInstanceIds(answer, service.id) : undefined;
    this.#described.set(key, { description });
    return description;
  }

  /** `undefined` when the service does not answer or does not know. */
  async #get(service: Appservice, path: string, query: Fields): Promise<unknown> {
    const paths = [`/_matrix/app/v1${path}`, `/_matrix/app/unstable${path}`];
    try {
      return await this.#client.getJson(service, { paths, query, timeoutMs: TIMEOUT_MS });
    } catch (error) {
      if (error instanceof UnreachableError) return undefined;
      throw error;
    }
  }
}

/** Instances are told apart by ids of ours: `third_party_instance_id` of `/publicRooms` names one by them. */
function withInstanceIds(description: JsonObject, serviceId: string): JsonObject {
  const instances = instancesOf(description).map((instance) => ({
    ...instance,
    ...(typeof instance.network_id === 'string' && { instance_id: `${serviceId}|${instance.network_id}` }),
  }));
  return { user_fields: [], location_fields: [], field_types: {}, icon: '', ...description, instances };
}

function instancesOf(description: JsonObject | undefined): JsonObject[] {
  const instances = description?.instances;
  return Array.isArray(instances) ? instances.filter(isObject) : [];
}

function isUser({ userid, protocol, fields }: JsonObject): boolean {
  return typeof userid === 'string' && typeof protocol === 'string' && isObject(fields);
}

function isLocation({ alias, protocol, fields }: JsonObject): boolean {
  return typeof alias === 'string' && typeof protocol === 'string' && isObject(fields);
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
