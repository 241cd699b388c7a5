import { stringify } from 'yaml';
import type { Certificate } from './certificate.ts';
import type { Json } from './json.ts';

interface Settings {
  /** Where it listens. */
  address: string;
  dataDir: string;
  clientPort: number;
  federationPort: number;
  /** Where clients find it, if not at its own port. */
  publicPort?: number;
  /** Without: somebody else listens at the federation port. */
  certificate: Certificate | undefined;
  /** The authority that it trusts. */
  caFile: string;
  /** How several processes find each other. */
  shared?: Json;
  /** Merged over the rest, object by object. */
  extra: Json;
}

/** The configuration of a server under test: everything at one address, no rate limits, cheap password hashes. */
export function writeConfig(settings: Settings): string {
  const { address, certificate } = settings;
  const tls = certificate && {
    host: address,
    port: settings.federationPort,
    certificate: certificate.certFile,
    key: certificate.keyFile,
  };
  const config = {
    server_name: `${address}:${settings.federationPort}`,
    data_dir: settings.dataDir,
    public_url: `http://${address}:${settings.publicPort ?? settings.clientPort}`,
    http: { host: address, port: settings.clientPort },
    ...(tls ? { tls } : {}),
    ...settings.shared,
    registration: { open: true },
    passwords: { memory_kib: 64, passes: 1 },
    rate_limits: { enabled: false },
    federation: { ca_file: settings.caFile, deny_addresses: [] },
    log: { level: 'info' },
  };
  return stringify(merge(config, settings.extra));
}

function merge(base: Json, over: Json): Json {
  if (!isObject(base) || !isObject(over)) return over;
  const merged = { ...base };
  for (const [key, value] of Object.entries(over))
    merged[key] = key in base ? merge(base[key], value) : value;
  return merged;
}

const isObject = (value: Json) => typeof value === 'object' && value !== null && !Array.isArray(value);
