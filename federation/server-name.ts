import { isIpLiteral, parseServerName } from '@trellis/protocol/identifiers.ts';

/** A server name as something to connect to. */
export interface ServerAddress {
  /** Without the brackets of an IPv6 literal. */
  host: string;
  port: number | undefined;
  isLiteral: boolean;
}

/** `undefined` when the name follows no server name's grammar or leads nowhere. */
export function parseServerAddress(name: string): ServerAddress | undefined {
  const parsed = name.length <= 255 ? parseServerName(name) : undefined;
  if (!parsed || parsed.port === 0) return undefined;
  const { host, port } = parsed;
  const isLiteral = isIpLiteral(host);
  // Numbers that are no address are no DNS name either; resolvers would read them in ways of their own.
  if (!isLiteral && /^[0-9.]+$/.test(host)) return undefined;
  return { host: host.replace(/^\[|\]$/g, ''), port, isLiteral };
}
