import { randomBytes } from 'node:crypto';
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SigningKey } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';

/** Where the signing key of a configuration is. */
export function signingKeyFile(config: Pick<Config, 'data_dir' | 'signing_key'>): string {
  return config.signing_key ?? join(config.data_dir, 'signing.key');
}

/**
 * The server's signing key, from its file; made there at the first start of the installation. All processes of an
 * installation must sign with the same key, so the database knows which that is.
 *
 * @param only whether this process is sure to be the only one, or the first of those on this machine: whoever then puts
 *   another key into the file means it
 */
export async function loadSigningKey(config: Config, db: Database, only: boolean): Promise<SigningKey> {
  const file = signingKeyFile(config);
  const known = await knownKey(db);
  const key =
    (await readSigningKey(file)) ?? (known === null || only ? await makeSigningKey(file) : undefined);
  if (!key)
    throw new ConfigError(
      `there is no ${file}, and other processes of this server have a signing key already: copy it from there`,
    );
  const own = nameOf(key);
  if (own === known) return key;
  const inForce = only ? await setKey(db, own) : await proposeKey(db, own);
  if (inForce !== own)
    throw new ConfigError(
      `${file} is another key than that of the other processes of this server (${inForce}): copy it from there. ` +
        'If the server is to have the new key from now on: stop them all and run "npm run trellis -- adopt-key"',
    );
  return key;
}

/** @returns undefined when there is none */
export async function readSigningKey(file: string): Promise<SigningKey | undefined> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    return undefined;
  }
  const [algorithm, version, seed, ...rest] = text.trim().split(/\s+/);
  if (algorithm !== 'ed25519' || !version || !seed || rest.length > 0)
    throw new Error(`${file} is no signing key: one line is wanted, "ed25519 VERSION SEED"`);
  try {
    return SigningKey.fromSeed(`ed25519:${version}`, seed);
  } catch (error) {
    throw new Error(`${file}: ${(error as Error).message}`);
  }
}

/** Has the installation sign with a key from now on. */
export async function adoptKey(db: Database, key: SigningKey): Promise<void> {
  await setKey(db, nameOf(key));
}

export function signingKeyLine(key: SigningKey): string {
  return `ed25519 ${key.keyId.slice('ed25519:'.length)} ${key.seedBase64}\n`;
}

/** Whole or not at all: half a key would lock the server out of its own rooms. Of two that make one, both get the same. */
async function makeSigningKey(file: string): Promise<SigningKey> {
  const half = `${file}.${randomBytes(6).toString('hex')}`;
  await writeFile(half, signingKeyLine(SigningKey.generate()), { mode: 0o600, flush: true });
  try {
    await link(half, file);
  } catch (error) {
    // Some file systems know no links.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') await rename(half, file);
  } finally {
    await rm(half, { force: true });
  }
  return (await readSigningKey(file))!;
}

function nameOf(key: SigningKey): string {
  return `${key.keyId} ${key.publicKeyBase64}`;
}

async function knownKey(db: Database): Promise<string | null> {
  const [row] = await db.query<{ signing_key: string | null }>('SELECT signing_key FROM installation');
  return row!.signing_key;
}

async function setKey(db: Database, key: string): Promise<string> {
  await db.query('UPDATE installation SET signing_key = $1', [key]);
  return key;
}

async function proposeKey(db: Database, key: string): Promise<string> {
  const [row] = await db.query<{ signing_key: string }>(
    'UPDATE installation SET signing_key = coalesce(signing_key, $1) RETURNING signing_key',
    [key],
  );
  return row!.signing_key;
}
