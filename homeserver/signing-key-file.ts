import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SigningKey } from '@trellis/protocol/signing.ts';

/**
 * The server's signing key, from `signing.key` in the data folder; made there at the first start. One line,
 * `ed25519 VERSION SEED`, as other homeservers keep theirs, so that a key can be taken along.
 */
export async function loadSigningKey(dataDir: string): Promise<SigningKey> {
  const file = join(dataDir, 'signing.key');
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    const key = SigningKey.generate();
    await writeSigningKey(file, key);
    return key;
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

/** Whole or not at all: half a key would lock the server out of its own rooms. */
export async function writeSigningKey(file: string, key: SigningKey): Promise<void> {
  const half = `${file}.new`;
  await writeFile(half, signingKeyLine(key), { mode: 0o600, flush: true });
  await rename(half, file);
}

export function signingKeyLine(key: SigningKey): string {
  return `ed25519 ${key.keyId.slice('ed25519:'.length)} ${key.seedBase64}\n`;
}
