import { createRequire } from 'node:module';
import { decodeBase64 } from '@trellis/protocol/base64.ts';
import { verifyKey, verifySignature } from '@trellis/protocol/signing.ts';

/** What is used of `sodium-native`, which has no types of its own. */
interface Sodium {
  crypto_sign_verify_detached(signature: Buffer, message: Buffer, publicKey: Buffer): boolean;
}

/** Whether a text bears a signature by a public key, both in Base64. */
export type Verify = (publicKey: string, text: string, signature: string) => boolean;

/**
 * Verifies by libsodium, which takes little more than half of OpenSSL's time and agrees with it on what is no
 * signature; `undefined` where `sodium-native` has nothing for the platform. To load it takes ten milliseconds and as
 * many megabytes: for who has many signatures to verify.
 */
export function libsodiumVerify(): Verify | undefined {
  let sodium: Sodium;
  try {
    sodium = createRequire(import.meta.url)('sodium-native') as Sodium;
  } catch {
    return undefined;
  }
  return (publicKey, text, signature) => {
    const key = decodeBase64(publicKey);
    const bytes = decodeBase64(signature);
    // It throws at other lengths.
    if (key?.length !== 32 || bytes?.length !== 64) return false;
    return sodium.crypto_sign_verify_detached(bytes, Buffer.from(text), key);
  };
}

/** The same by OpenSSL, which Node comes with. */
export const opensslVerify: Verify = (publicKey, text, signature) => {
  const key = verifyKey(publicKey);
  return key !== undefined && verifySignature(key, text, signature);
};
