import { readFileSync } from 'node:fs';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { type AllowedServers, allowedServers } from '@trellis/federation/allowed-servers.ts';
import { Discovery } from '@trellis/federation/discovery.ts';
import { authenticateServers } from '@trellis/federation/inbound/authentication.ts';
import { keyRoutes } from '@trellis/federation/inbound/keys.ts';
import { versionRoutes } from '@trellis/federation/inbound/version.ts';
import { KeyFetcher } from '@trellis/federation/key-fetcher.ts';
import { KeyRing, type OwnKey } from '@trellis/federation/key-ring.ts';
import { KeyStore } from '@trellis/federation/key-store.ts';
import { AddressGuard, type AddressRules } from '@trellis/federation/outbound/address-guard.ts';
import { Backoff } from '@trellis/federation/outbound/backoff.ts';
import { FederationClient } from '@trellis/federation/outbound/client.ts';
import {
  type GuardedDispatcherOptions,
  guardedAgent,
  guardedConnector,
} from '@trellis/federation/outbound/guarded-dispatcher.ts';
import { createGuardedFetch, type GuardedFetch } from '@trellis/federation/outbound/guarded-fetch.ts';
import type { SigningKey } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { FastifyInstance } from 'fastify';

/** The section `federation` of the configuration. */
export interface FederationConfig {
  /** `false`: no other server is talked to. */
  readonly enabled?: boolean;
  /** A file of certificate authorities (PEM) trusted besides those of the system. */
  readonly ca_file?: string;
  /** `false` accepts every certificate: for closed networks only. */
  readonly verify_tls?: boolean;
  /** Address ranges that are never connected to; private ones when left out. */
  readonly deny_addresses?: readonly string[];
  /** Exceptions to `deny_addresses`. */
  readonly allow_addresses?: readonly string[];
  /** Server names (globs): when given, no others are federated with. */
  readonly allow_servers?: readonly string[];
  readonly deny_servers?: readonly string[];
  /** Notaries; `matrix.org` when left out. */
  readonly trusted_key_servers?: ReadonlyArray<{
    readonly server_name: string;
    /** Key id to Base64; asked of the server itself when left out. */
    readonly verify_keys?: Readonly<Record<string, string>>;
  }>;
  /** Public keys of any server that are in the wrong hands, in Base64. */
  readonly distrusted_keys?: readonly string[];
}

export interface FederationTransportParts {
  readonly config: FederationConfig;
  readonly db: Database;
  readonly cluster?: Cluster;
  readonly serverName: string;
  readonly signingKey: SigningKey;
  /** Keys that this server signed with before. */
  readonly oldKeys?: readonly OwnKey[];
  readonly software: { readonly name: string; readonly version: string };
}

/** What everything that talks to other servers stands on. */
export interface FederationTransport {
  readonly client: FederationClient;
  readonly keyRing: KeyRing;
  readonly keyFetcher: KeyFetcher;
  readonly backoff: Backoff;
  /** Requests to URLs that others choose, with federation's address rules and certificates. */
  readonly fetch: GuardedFetch;
  /** The same with other address rules: previews, push gateways. */
  fetchWith(rules: AddressRules): GuardedFetch;
  /** Whether the configuration federates with a server. */
  isAllowed(serverName: string): boolean;
  /**
   * Plugs the Server-Server API into an HTTP server: keys and version for everyone, and what `authenticated`
   * registers for servers that sign their requests.
   */
  routes(app: FastifyInstance, authenticated: (app: FastifyInstance) => void): void;
  close(): Promise<void>;
}

const MATRIX_ORG = {
  server_name: 'matrix.org',
  verify_keys: { 'ed25519:auto': 'Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw' },
};

export async function composeFederationTransport(
  parts: FederationTransportParts,
): Promise<FederationTransport> {
  const { config, db, cluster, serverName, signingKey, software } = parts;
  const userAgent = `${software.name}/${software.version}`;
  const dispatching: Omit<GuardedDispatcherOptions, 'guard'> = {
    verifyTls: config.verify_tls,
    extraCa: config.ca_file === undefined ? [] : [readFileSync(config.ca_file, 'utf8')],
  };
  const agents: Array<{ destroy(): Promise<void> }> = [];
  const fetchWith = (rules: AddressRules): GuardedFetch => {
    const agent = guardedAgent({ ...dispatching, guard: new AddressGuard(rules) });
    agents.push(agent);
    return createGuardedFetch(agent, userAgent);
  };
  const rules: AddressRules = { deny: config.deny_addresses, allow: config.allow_addresses };
  const fetch = fetchWith(rules);
  const isAllowed = isAllowedBy(config);
  const backoff = new Backoff(db, Date.now, cluster);
  await backoff.load();
  const client = new FederationClient({
    serverName,
    signingKey,
    discovery: new Discovery({ fetch }),
    connector: guardedConnector({ ...dispatching, guard: new AddressGuard(rules) }),
    backoff,
    userAgent,
    isAllowed,
  });
  const ownKeys = [
    { keyId: signingKey.keyId, publicKey: signingKey.publicKeyBase64 },
    ...(parts.oldKeys ?? []),
  ];
  const store = new KeyStore(db, cluster);
  const keyFetcher = new KeyFetcher({ client, store, trustedKeyServers: trustedKeyServers(config) });
  const keyRing = new KeyRing({
    serverName,
    ownKeys,
    store,
    fetcher: keyFetcher,
    distrusted: config.distrusted_keys,
  });

  return {
    client,
    keyRing,
    keyFetcher,
    backoff,
    fetch,
    fetchWith,
    isAllowed,
    routes(app, authenticated) {
      keyRoutes(app, { serverName, signingKey, ownKeys, store, fetcher: keyFetcher });
      versionRoutes(app, software);
      app.register(async (scope) => {
        const onContact = (origin: string) => void backoff.reachable(origin).catch(() => {});
        authenticateServers(scope, { serverName, keyRing, isAllowed, onContact });
        authenticated(scope);
      });
    },
    async close() {
      await client.close();
      await Promise.all(agents.map((agent) => agent.destroy()));
    },
  };
}

function isAllowedBy(config: FederationConfig): (serverName: string) => boolean {
  if (config.enabled === false) return () => false;
  const allow = config.allow_servers?.length ? config.allow_servers : undefined;
  const servers: AllowedServers = { allow, deny: config.deny_servers };
  return allowedServers(servers);
}

function trustedKeyServers(config: FederationConfig) {
  return (config.trusted_key_servers ?? [MATRIX_ORG]).map(({ server_name, verify_keys }) => ({
    serverName: server_name,
    verifyKeys: verify_keys && new Map(Object.entries(verify_keys)),
  }));
}
