import { lookup as dnsLookup, type LookupAddress } from 'node:dns';
import { isIP, type LookupFunction } from 'node:net';
import { createSecureContext, getCACertificates } from 'node:tls';
import { Agent, buildConnector, type Dispatcher, Pool } from 'undici';
import type { AddressGuard } from './address-guard.ts';

/** A request was stopped because it led to an address that the configuration refuses. */
export class BlockedAddressError extends Error {
  override readonly name = 'BlockedAddressError';
  readonly code = 'TRELLIS_BLOCKED_ADDRESS';
}

export interface GuardedDispatcherOptions {
  guard: AddressGuard;
  /** `false` accepts every certificate: for tests and closed networks only. */
  verifyTls?: boolean;
  /** Certificate authorities (PEM) trusted besides those of the system. */
  extraCa?: readonly string[];
  connectTimeoutMs?: number;
  /** Sockets to one host at a time. */
  connectionsPerHost?: number;
  /** How names become addresses; the system's resolver when left out. */
  lookup?: typeof dnsLookup;
}

type Connector = ReturnType<typeof buildConnector>;

/**
 * The connector under every request to a name that others choose. Addresses are checked when the connection is
 * made, after the name was resolved: whatever DNS says then (rebinding) and wherever a redirect leads, it is checked.
 */
export function guardedConnector(options: GuardedDispatcherOptions): Connector {
  const { guard, verifyTls = true, extraCa = [], connectTimeoutMs = 10_000 } = options;
  const connect = buildConnector({
    timeout: connectTimeoutMs,
    lookup: guardedLookup(guard, options.lookup ?? dnsLookup),
    rejectUnauthorized: verifyTls,
    // One for all connections, made before the first: reading the authorities takes several milliseconds.
    secureContext: createSecureContext(extraCa.length > 0 ? { ca: withDefaults(extraCa) } : {}),
    // `lookup` and `secureContext` go through to net.connect and tls.connect.
  } as Parameters<typeof buildConnector>[0]);
  return (target, callback) => {
    // net.connect does not look up literals, so they are checked here.
    if (isIP(target.hostname) !== 0 && !guard.allows(target.hostname)) {
      callback(new BlockedAddressError(`requests to ${target.hostname} are not allowed`), null);
      return;
    }
    connect(target, callback);
  };
}

/** One dispatcher for many origins, for requests that follow URLs. */
export function guardedAgent(options: GuardedDispatcherOptions): Agent {
  return new Agent({
    ...clientOptions,
    connections: options.connectionsPerHost ?? 4,
    connect: guardedConnector(options),
  });
}

/** Where to connect, when that is not what the origin's URL says (SRV records). */
export interface PoolTarget {
  /** `https://` and the host that the certificate must be for. */
  origin: string;
  connectHost: string;
}

/** Sockets to one destination, over a connector shared by all. */
export function guardedPool(target: PoolTarget, connector: Connector, connections: number): Pool {
  const host = new URL(target.origin).hostname.replace(/^\[|\]$/g, '');
  const connect: Connector = (options, callback) =>
    connector(
      {
        ...options,
        hostname: target.connectHost,
        // No SNI for literals; `null` would make the connector guess from the Host header.
        servername: isIP(host) === 0 ? host : '',
      },
      callback,
    );
  return new Pool(target.origin, { ...clientOptions, connections, connect });
}

/** Bounds on what a peer can make us hold or wait for, besides those of each request. */
const clientOptions = {
  maxHeaderSize: 32 * 1024,
  keepAliveTimeout: 20_000,
  keepAliveMaxTimeout: 60_000,
  pipelining: 1,
} satisfies Pool.Options;

function guardedLookup(guard: AddressGuard, lookup: typeof dnsLookup): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses) => {
      if (error) return callback(error, []);
      const allowed = (addresses as LookupAddress[]).filter(({ address }) => guard.allows(address));
      const [first] = allowed;
      if (!first) return callback(new BlockedAddressError(`${hostname} has no address that is allowed`), []);
      if (options.all) callback(null, allowed);
      else callback(null, first.address, first.family);
    });
  };
}

function withDefaults(extraCa: readonly string[]): string[] {
  return [...getCACertificates('default'), ...extraCa];
}

export type { Dispatcher };
