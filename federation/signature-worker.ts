import { parentPort } from 'node:worker_threads';
import { verifyKey, verifySignature } from '@trellis/protocol/signing.ts';
import type { VerificationRequest } from './signatures.ts';

/** The thread that `signatures.ts` hands work to. It says first that it is there. */
parentPort!.on('message', ({ id, claims }: VerificationRequest) => {
  const verdicts = claims.map(([publicKey, text, signature]) => {
    const key = verifyKey(publicKey);
    return key !== undefined && verifySignature(key, text, signature);
  });
  parentPort!.postMessage({ id, verdicts });
});
parentPort!.postMessage('ready');
