import { notFound } from '@trellis/protocol/errors.ts';
import type { FastifyInstance } from 'fastify';

export interface SupportInfo {
  readonly contacts?: ReadonlyArray<{
    readonly matrix_id?: string;
    readonly email_address?: string;
    readonly role: string;
  }>;
  readonly support_page?: string;
}

export interface WellKnownDeps {
  /** Where clients reach this server; `undefined`: not told. */
  readonly publicUrl: string | undefined;
  /** `HOST:PORT` where servers reach this one, when that is elsewhere than the server name says. */
  readonly delegatedTo?: string;
  /** Further members for clients, by namespaced names. */
  readonly clientExtra?: Readonly<Record<string, unknown>>;
  readonly support?: SupportInfo;
}

/** What clients are told of where to find this server, also in answers to `/login`. */
export function clientDiscovery({ publicUrl, clientExtra }: WellKnownDeps): object | undefined {
  return publicUrl === undefined ? undefined : { ...clientExtra, 'm.homeserver': { base_url: publicUrl } };
}

/** `/.well-known/matrix/…` (spec: "Well-known URIs"; server-server API, "Resolving server names"). */
export function wellKnownRoutes(app: FastifyInstance, deps: WellKnownDeps): void {
  const documents: Record<string, object | undefined> = {
    client: clientDiscovery(deps),
    server: deps.delegatedTo === undefined ? undefined : { 'm.server': deps.delegatedTo },
    support: deps.support,
    // This server signs no others' events (spec: "Policy Servers").
    policy_server: undefined,
  };
  for (const [name, document] of Object.entries(documents))
    app.get(`/.well-known/matrix/${name}`, { config: { auth: 'none' } }, async () => {
      if (!document) throw notFound('This server has no such information');
      return document;
    });
}
