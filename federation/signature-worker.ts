import { parentPort } from 'node:worker_threads';
import { libsodiumVerify, opensslVerify } from './libsodium.ts';
import type { VerificationRequest } from './signatures.ts';

const verify = libsodiumVerify() ?? opensslVerify;

/** The thread that `signatures.ts` hands work to. It says first that it is there. */
parentPort!.on('message', ({ id, claims }: VerificationRequest) => {
  const verdicts = claims.map(([publicKey, text, signature]) => verify(publicKey, text, signature));
  parentPort!.postMessage({ id, verdicts });
});
parentPort!.postMessage('ready');
