import { appserviceAdminRoutes } from '@trellis/appservices/admin-routes.ts';
import { AppserviceClient } from '@trellis/appservices/client.ts';
import { Deliveries } from '@trellis/appservices/deliveries.ts';
import type { KeyCounts } from '@trellis/appservices/device-news.ts';
import { pingRoutes } from '@trellis/appservices/ping.ts';
import { Queries } from '@trellis/appservices/queries.ts';
import { Registrar } from '@trellis/appservices/registrar.ts';
import {
  loadRegistrations,
  type Registration,
  RegistrationError,
} from '@trellis/appservices/registration.ts';
import { type Appservice, Appservices } from '@trellis/appservices/registry.ts';
import { RoomAliases } from '@trellis/appservices/room-aliases.ts';
import { AppserviceNetworks } from '@trellis/appservices/third-party.ts';
import { requesterOf } from '@trellis/client-api/authentication.ts';
import type { ThirdPartyNetworks } from '@trellis/client-api/third-party.ts';
import { forbidden } from '@trellis/protocol/errors.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { AppserviceTokens } from '@trellis/users/appservice-users.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { ConfigError } from '../config/load.ts';
import type { Config } from '../config/schema.ts';
import type { Core } from './core.ts';
import type { RoomAppservices } from './rooms-read.ts';

/** What application services are told of comes from here. */
export interface AppserviceSources {
  readonly accounts: Accounts;
  readonly aliases: Aliases;
  readonly keyCounts: KeyCounts;
  readonly toDeviceReceived: (userId: string, deviceId: string, position: number) => Promise<void>;
}

export interface AppservicesArea {
  readonly tokens: AppserviceTokens;
  readonly rooms: RoomAppservices;
  readonly networks: ThirdPartyNetworks;
  /** Whether an application service has made the account of this user, who was not known here, just now. */
  readonly madeUser: (userId: string) => Promise<boolean>;
  connect(sources: AppserviceSources): void;
  clientRoutes(scope: FastifyInstance): void;
}

/** @throws ConfigError with the file, the option and what is wrong with it */
export function registrationsOf(config: Pick<Config, 'application_services'>): Registration[] {
  try {
    return loadRegistrations(config.application_services);
  } catch (error) {
    if (error instanceof RegistrationError) throw new ConfigError(error.message);
    throw error;
  }
}

/** Bridges and bots: who they are, what they are asked, and what they are told. */
export function composeAppservices(core: Core): AppservicesArea {
  const services = new Appservices(registrationsOf(core.config), core.serverName);
  const client = new AppserviceClient();
  const queries = new Queries(services, client, core.cluster);
  let deliveries: Deliveries | undefined;
  let registrar: Registrar | undefined;
  return {
    tokens: {
      byToken(asToken) {
        const service = services.byToken(asToken);
        if (service) deliveries?.seenAlive(service);
        return service;
      },
      exclusiveOwner: (userId) => services.exclusiveOwner(userId),
    },
    rooms: {
      exclusiveAliasOwner: (alias) => services.exclusiveAliasOwner(alias),
      mayHaveAlias: (id, alias) => services.mayHaveAlias(id, alias),
      actsAs: (id, userId) => services.actsAs(id, userId),
    },
    networks: new AppserviceNetworks(services, client),
    madeUser: (userId) => queries.madeUser(userId),

    connect({ accounts, aliases, keyCounts, toDeviceReceived }) {
      aliases.onMissing((alias) => queries.madeAlias(alias));
      const started = new Deliveries({
        ...core,
        services,
        client,
        aliases: new RoomAliases(aliases, core.cluster),
        keyCounts,
        received: toDeviceReceived,
      });
      deliveries = started;
      const makeSender = (service: Appservice) => senderOf(service, accounts);
      const registered = new Registrar({ ...core, services, deliveries: started, makeSender });
      registrar = registered;
      core.onReady(async () => {
        await registered.load();
        for (const service of services.all) await makeSender(service);
        await started.prepare();
      });
      core.onServing(() => started.start());
      core.onClose(async () => {
        await started.close();
        await client.close();
      });
    },

    clientRoutes(scope) {
      if (registrar) appserviceAdminRoutes(scope, { registrar, requireAdministrator });
      pingRoutes(scope, {
        services,
        client,
        appserviceOf: (request) => requesterOf(request).appserviceId,
        onAnswer: (service) => deliveries?.seenAlive(service, true),
      });
    },
  };
}

function requireAdministrator(request: FastifyRequest): void {
  if (!requesterOf(request).isAdmin) throw forbidden('You are not an administrator');
}

/** Makes the user that a service acts as when it names no other. */
async function senderOf({ id, senderUserId, registration }: Appservice, accounts: Accounts): Promise<void> {
  if (!(await accounts.get(senderUserId)))
    await accounts.create({ localpart: registration.senderLocalpart, appserviceId: id });
}
