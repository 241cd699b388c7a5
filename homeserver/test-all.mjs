// `npm test`: types, format and lint, then every test. With file names, only those tests, in detail.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const node = findNode();
const modules = join(root, 'node_modules');
// A test may take minutes (the first one with Synapse installs it); what hangs is to end in a time.
const TEST = ['--test', '--test-concurrency=2', '--test-timeout=600000'];

const scratch = mkdtempSync(join(tmpdir(), 'trellis-test-all-'));
// Where tests write down which operations of the specification they saw succeed.
const seen = join(scratch, 'seen');
mkdirSync(seen);
process.env.TRELLIS_OPENAPI_SEEN = seen;
// The counts are to be the last that is said.
const counts = join(scratch, 'counts');
process.on('exit', () => {
  if (existsSync(counts)) process.stdout.write(readFileSync(counts, 'utf8'));
  rmSync(scratch, { recursive: true, force: true });
});

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
  process.env.TRELLIS_TEST_COUNTS = counts;
  run('tests', ...TEST, reporter, 'complement-tests/*.test.ts', '*/test/**/*.test.ts');
  run(
    'operations of the specification',
    join(root, 'complement-tests', 'harness', 'openapi-report.ts'),
    seen,
  );
}
