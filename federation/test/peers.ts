import type { lookup } from 'node:dns';
import type { RequestListener } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { AddressGuard, type AddressRules } from '../outbound/address-guard.ts';
import { type GuardedDispatcherOptions, guardedAgent } from '../outbound/guarded-dispatcher.ts';
import { createGuardedFetch, type GuardedFetch } from '../outbound/guarded-fetch.ts';
import { selfSigned } from './certificate.ts';

/** Of localhost, of 127.0.0.1 and of the names that tests use: wildcards match no name of two parts. */
export const testTls = selfSigned([
  'localhost',
  '127.0.0.1',
  ...['a', 'b', 'd', 'n', 'name', 'one', 'two', 'three', 'notary'].map((name) => `${name}.test`),
]);
export const testCa = testTls.cert;

/** A real TLS server on loopback that lives as long as the test. */
export async function tlsServer(t: TestContext, handler: RequestListener): Promise<number> {
  const server: Server = createServer(testTls, handler);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** Names ending in `.test` are on loopback; others go to the system's resolver. */
export const testLookup = ((hostname: string, options: object, callback: (...args: unknown[]) => void) => {
  if (hostname.endsWith('.test')) callback(null, [{ address: '127.0.0.1', family: 4 }]);
  else callback(Object.assign(new Error(`no such name: ${hostname}`), { code: 'ENOTFOUND' }), options);
}) as unknown as typeof lookup;

export function testDispatcher(
  rules: AddressRules = { allow: ['127.0.0.0/8', '::1'] },
): GuardedDispatcherOptions {
  return { guard: new AddressGuard(rules), extraCa: [testCa], lookup: testLookup, connectTimeoutMs: 2_000 };
}

export function testFetch(t: TestContext, rules?: AddressRules): GuardedFetch {
  const agent = guardedAgent(testDispatcher(rules));
  t.after(() => agent.destroy());
  return createGuardedFetch(agent, 'Trellis-test');
}
