import { hash } from 'node:crypto';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { AppserviceIdentity, AppserviceTokens } from '@trellis/users/appservice-users.ts';
import { Namespaces } from './namespaces.ts';
import type { Registration } from './registration.ts';

/** A registered application service, with what it is interested in. */
export class Appservice implements AppserviceIdentity {
  readonly registration: Registration;
  readonly senderUserId: string;
  readonly users: Namespaces;
  readonly aliases: Namespaces;
  readonly rooms: Namespaces;
  readonly #serverName: string;

  constructor(registration: Registration, serverName: string) {
    this.registration = registration;
    this.senderUserId = `@${registration.senderLocalpart}:${serverName}`;
    this.users = new Namespaces(registration.users);
    this.aliases = new Namespaces(registration.aliases);
    this.rooms = new Namespaces(registration.rooms);
    this.#serverName = serverName;
  }

  get id(): string {
    return this.registration.id;
  }

  get rateLimited(): boolean {
    return this.registration.rateLimited;
  }

  get wantsEphemeral(): boolean {
    return this.registration.receiveEphemeral || this.registration.pushEphemeral;
  }

  /** Users of other servers are nobody's, whatever they are called. */
  isInterested(userId: string): boolean {
    if (userId === this.senderUserId) return true;
    return this.users.includes(userId) && serverNameOf(userId) === this.#serverName;
  }

  /** Nobody else may have or be this local user. */
  owns(userId: string): boolean {
    return userId === this.senderUserId || this.users.reserves(userId);
  }
}

/** All application services of this server. */
export class Appservices implements AppserviceTokens {
  readonly #serverName: string;
  readonly #byId = new Map<string, Appservice>();
  /** By the hash of the token: what the time of a look-up tells of it leads to no token. */
  readonly #byToken = new Map<string, Appservice>();
  #all: readonly Appservice[] = [];

  constructor(registrations: readonly Registration[], serverName: string) {
    this.#serverName = serverName;
    for (const registration of registrations) this.set(registration);
  }

  get all(): readonly Appservice[] {
    return this.#all;
  }

  /** In place of the one with its id, if there is one. */
  set(registration: Registration): Appservice {
    this.delete(registration.id);
    const service = new Appservice(registration, this.#serverName);
    this.#byId.set(service.id, service);
    this.#byToken.set(hash('sha256', registration.asToken), service);
    this.#all = [...this.#byId.values()];
    return service;
  }

  delete(id: string): void {
    const service = this.#byId.get(id);
    if (!service) return;
    this.#byId.delete(id);
    this.#byToken.delete(hash('sha256', service.registration.asToken));
    this.#all = [...this.#byId.values()];
  }

  get(id: string): Appservice | undefined {
    return this.#byId.get(id);
  }

  byToken(asToken: string): Appservice | undefined {
    return this.all.length === 0 ? undefined : this.#byToken.get(hash('sha256', asToken));
  }

  exclusiveOwner(userId: string): Appservice | undefined {
    return this.all.find((service) => service.owns(userId));
  }

  exclusiveAliasOwner(alias: string): string | undefined {
    return this.all.find(({ aliases }) => aliases.reserves(alias))?.id;
  }

  mayHaveAlias(id: string, alias: string): boolean {
    return this.#byId.get(id)?.aliases.includes(alias) ?? false;
  }

  actsAs(id: string, userId: string): boolean {
    return this.#byId.get(id)?.isInterested(userId) ?? false;
  }
}
