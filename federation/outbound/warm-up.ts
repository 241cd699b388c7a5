import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import { buildConnector } from 'undici';
import { FederationClient, type FederationClientOptions } from './client.ts';

/** Who has just started the server is served first, in milliseconds. */
const PAUSE = 500;
const LIMIT = 5_000;
/** So many that V8 finds the HTTP parser, which is WebAssembly, worth being optimised. */
const REQUESTS = 20;

/**
 * What a first request to another server needs, from the HTTP parser to what OpenSSL fetches for a handshake, takes many
 * times as long to load and compile as to run. So one is made while nobody waits for it: to this process, by a client as
 * the server has it. Both sides know a secret that is made for this, and need no certificates.
 *
 * @returns stops it
 */
export function warmUp(options: Omit<FederationClientOptions, 'connector'>): () => Promise<void> {
  const stop = new AbortController();
  const done = delay(PAUSE, undefined, { signal: stop.signal, ref: false })
    .then(() => askMyself(options, stop.signal))
    // Then the first request does it.
    .catch(() => {});
  return () => {
    stop.abort();
    return done;
  };
}

async function askMyself(
  options: Omit<FederationClientOptions, 'connector'>,
  signal: AbortSignal,
): Promise<void> {
  const psk = randomBytes(32);
  const secret: ServerOptions = { ciphers: 'PSK', pskCallback: () => psk };
  const server = createServer(secret, (_request, response) => response.end('{}')).unref();
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const connection: ConnectionOptions = {
    ciphers: 'PSK',
    pskCallback: () => ({ psk, identity: 'itself' }),
    checkServerIdentity: () => undefined,
  };
  const client = new FederationClient({
    ...options,
    isAllowed: () => true,
    connector: buildConnector(connection as buildConnector.BuildOptions),
  });
  try {
    const destination = `127.0.0.1:${port}`;
    for (let i = 0; i < REQUESTS; i++)
      await client.request({ method: 'PUT', destination, path: '/', body: {}, timeoutMs: LIMIT, signal });
  } finally {
    await client.close();
    server.close();
  }
}
