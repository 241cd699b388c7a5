import { Buffer } from 'node:buffer';
import { hash, randomBytes } from 'node:crypto';

/** A new secret of 256 bits. The prefix tells people and leak scanners what it is. */
export function newSecret(prefix: string): string {
  return `${prefix}_${randomBytes(32).toString('base64url')}`;
}

/** What is kept of a secret. Secrets are too long to be guessed from it, so it needs no salt. */
export function secretHash(secret: string): string {
  return hash('sha256', secret, 'base64url');
}

export function hashBytes(base64url: string): Buffer {
  return Buffer.from(base64url, 'base64url');
}

/** Letters that nobody confuses, for ids that people may have to read. */
export function randomLetters(count: number, alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'): string {
  // Rejection keeps every letter equally likely.
  const usable = 256 - (256 % alphabet.length);
  let text = '';
  while (text.length < count)
    for (const byte of randomBytes(count))
      if (byte < usable && text.length < count) text += alphabet[byte % alphabet.length];
  return text;
}
