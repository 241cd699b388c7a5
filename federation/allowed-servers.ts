import { compileGlob } from '@trellis/protocol/glob.ts';
import { parseServerAddress } from './server-name.ts';

export interface AllowedServers {
  /** Server names, with `*` and `?`: when given, no others are federated with. */
  readonly allow?: readonly string[];
  /** Server names, with `*` and `?`, that are not federated with; wins over `allow`. */
  readonly deny?: readonly string[];
}

/** Which servers this one federates with, in either direction. Ports do not matter, as in server ACLs. */
export function allowedServers({ allow, deny = [] }: AllowedServers): (serverName: string) => boolean {
  if (!allow && deny.length === 0) return () => true;
  const allowed = allow && matcher(allow);
  const denied = matcher(deny);
  return (serverName) => {
    const host = parseServerAddress(serverName)?.host.toLowerCase();
    return host !== undefined && !denied(host) && (allowed?.(host) ?? true);
  };
}

function matcher(patterns: readonly string[]): (host: string) => boolean {
  const globs = patterns.map((pattern) => compileGlob(pattern.toLowerCase()));
  return (host) => globs.some((glob) => glob.matches(host));
}
