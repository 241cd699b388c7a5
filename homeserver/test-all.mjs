// `npm test`: types, format and lint, then every test. With file names, only those tests, in detail.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const node = findNode();
const modules = join(root, 'node_modules');
// A test may take minutes (the first one with Synapse installs it); what hangs is to end in a time.
const TEST = ['--test', '--test-concurrency=2', '--test-timeout=600000'];

// Where tests write down which operations of the specification they saw succeed.
const seen = mkdtempSync(join(tmpdir(), 'trellis-test-seen-'));
process.on('exit', () => rmSync(seen, { recursive: true, force: true }));
process.env.TRELLIS_OPENAPI_SEEN = seen;

function run(title, ...args) {
  console.log(`# ${title}`);
  const { status } = spawnSync(node, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

const files = process.argv.slice(2);
if (files.length > 0) {
  run('tests', ...TEST, ...files);
} else {
  run('types', join(modules, 'typescript', 'bin', 'tsc'), '--noEmit');
  run('format and lint', join(modules, '@biomejs', 'biome', 'bin', 'biome'), 'check', '.');
  const reporter = `--test-reporter=${join(root, 'homeserver', 'test-report.mjs')}`;
  run('tests', ...TEST, reporter, 'complement-tests/*.test.ts', '*/test/**/*.test.ts');
  run(
    'operations of the specification',
    join(root, 'complement-tests', 'harness', 'openapi-report.ts'),
    seen,
  );
}
