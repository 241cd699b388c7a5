/**
 * Where content is kept below a folder or a prefix: `ab/cd/<the rest of the hash>`. Made of the hash alone, so nothing
 * that a user or a server chooses ever becomes part of it; the same in every store, so that content can be moved
 * between them by copying.
 */
export function contentPath(sha256: Buffer): string {
  if (sha256.length !== 32) throw new Error('a content hash has 32 bytes');
  const hex = sha256.toString('hex');
  return `${hex.slice(0, 2)}/${hex.slice(2, 4)}/${hex.slice(4)}`;
}
