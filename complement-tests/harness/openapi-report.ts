// Sums up what the tests saw of the client-server API: node complement-tests/harness/openapi-report.ts FOLDER
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checksAnswers, nameOf, operationsOf, SPEC_FOLDER } from './openapi.ts';

/** Operations that never succeed here, and why. */
const REFUSED = new Map([
  ['GET /_matrix/client/v1/auth_metadata', 'no OAuth 2.0: 404 M_UNRECOGNIZED says so'],
  ['GET /.well-known/matrix/policy_server', 'this server is no policy server'],
  ['GET /_matrix/client/v3/login/sso/redirect', 'no single sign-on'],
  ['GET /_matrix/client/v3/login/sso/redirect/{idpId}', 'no single sign-on'],
  ['POST /_matrix/client/v3/account/3pid', 'deprecated; no identity server is trusted'],
  ['POST /_matrix/client/v3/account/3pid/bind', 'no identity server is trusted'],
]);

const folder = process.argv[2];
if (folder === undefined) throw new Error('which folder?');
if (checksAnswers()) report(folder);
else
  console.log(`SKIPPED: nothing was checked against the specification at ${SPEC_FOLDER} (TRELLIS_SPEC_DIR)`);

function report(from: string): void {
  const lists = readdirSync(from).map((file) => readFileSync(join(from, file), 'utf8').split('\n'));
  const seen = new Set(lists.flat());
  const names = operationsOf('client-server').map(nameOf);
  const found = names.filter((name) => seen.has(name)).length;
  console.log(`${found} of ${names.length} operations were seen to succeed, ${REFUSED.size} never do here`);
  const missing = names.filter((name) => !seen.has(name) && !REFUSED.has(name));
  for (const name of missing) console.log(`never seen to succeed: ${name}`);
  if (missing.length > 0) process.exitCode = 1;
}
