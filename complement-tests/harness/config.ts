import { stringify } from 'yaml';
import type { Certificate } from './certificate.ts';
import type { Json } from './client.ts';

interface Settings {
  dataDir: string;
  clientPort: number;
  federationPort: number;
  certificate: Certificate;
  extra: Json;
}

/** The configuration of a server under test: everything on loopback, no limits, cheap password hashes. */
export function writeConfig(settings: Settings): string {
  return stringify(settings);
}
