import { missingParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';

type Fields = Readonly<Record<string, string>>;

/** What the application services of bridges know. Implemented by `appservices/`. */
export interface ThirdPartyNetworks {
  protocols(): Promise<Readonly<Record<string, JsonObject>>>;
  locations(protocol: string, fields: Fields): Promise<JsonObject[]>;
  users(protocol: string, fields: Fields): Promise<JsonObject[]>;
  locationsByAlias(alias: string): Promise<JsonObject[]>;
  usersById(userId: string): Promise<JsonObject[]>;
}

/** For a server without bridges. */
export const noThirdPartyNetworks: ThirdPartyNetworks = {
  protocols: async () => ({}),
  locations: async () => [],
  users: async () => [],
  locationsByAlias: async () => [],
  usersById: async () => [],
};

/** `/thirdparty/…` (spec: "Third-party Networks"). */
export function thirdPartyRoutes(
  app: FastifyInstance,
  { networks }: { readonly networks: ThirdPartyNetworks },
): void {
  const base = '/_matrix/client/v3/thirdparty';

  app.get(`${base}/protocols`, () => networks.protocols());

  app.get<{ Params: { protocol: string } }>(`${base}/protocol/:protocol`, async ({ params }) => {
    const protocols = await networks.protocols();
    if (!Object.hasOwn(protocols, params.protocol)) throw notFound('No such protocol');
    return protocols[params.protocol];
  });

  for (const [thing, find, findByName, name] of [
    ['location', networks.locations, networks.locationsByAlias, 'alias'],
    ['user', networks.users, networks.usersById, 'userid'],
  ] as const) {
    app.get<{ Params: { protocol: string }; Querystring: Record<string, unknown> }>(
      `${base}/${thing}/:protocol`,
      async (request) => {
        requesterOf(request);
        const found = await find.call(networks, request.params.protocol, fieldsOf(request.query));
        if (found.length === 0) throw notFound(`No such ${thing}`);
        return found;
      },
    );

    app.get<{ Querystring: Record<string, unknown> }>(`${base}/${thing}`, async ({ query }) => {
      const value = query[name];
      if (typeof value !== 'string') throw missingParam(`${name} is missing`);
      const found = await findByName.call(networks, value);
      if (found.length === 0) throw notFound(`No such ${thing}`);
      return found;
    });
  }
}

/** The fields that a bridge is asked by; the deprecated form of the access token is none of them. */
function fieldsOf({ access_token: _, ...query }: Record<string, unknown>): Fields {
  return Object.fromEntries(
    Object.entries(query).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  );
}
