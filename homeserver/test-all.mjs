// `npm test`: types, format and lint, then every test. With file names, only those tests, in detail.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const node = findNode();
const modules = join(root, 'node_modules');
// A test may take minutes (the first one with Synapse installs it); what hangs is to end in a time.
const TEST = ['--test', '--test-concurrency=2', '--test-timeout=600000'];

/** The black-box tests that are run on one process only, and why. */
const ONE_PROCESS = {
  'chaos.test.ts': 'kills and pauses whole servers, and changes the clock of each',
  'cluster-chaos.test.ts': 'has processes of its own',
  'crash.test.ts': 'is about what PostgreSQL has when it is killed as well',
  'openapi.test.ts': 'is about which operations there are',
  'restart.test.ts': 'has workers of its own',
  'routes.test.ts': 'is about which operations there are',
  'synapse.test.ts': 'is about another implementation',
  'walkthrough.test.ts': 'is about what the README says',
};
const PROCESSES = 4;

// Servers are started hundreds of times.
process.env.NODE_COMPILE_CACHE ??= join(modules, '.cache', 'compile');

const scratch = mkdtempSync(join(tmpdir(), 'trellis-test-all-'));
// Where tests write down which operations of the specification they saw succeed.
const seen = join(scratch, 'seen');
mkdirSync(seen);
process.env.TRELLIS_OPENAPI_SEEN = seen;
// The counts are to be the last that is said.
const counts = join(scratch, 'counts');
process.on('exit', () => {
  if (existsSync(counts)) process.stdout.write(summary(readFileSync(counts, 'utf8')));
  rmSync(scratch, { recursive: true, force: true });
});

function run(title, ...args) {
  runWith({}, title, ...args);
}

function runWith(env, title, ...args) {
  console.log(`# ${title}`);
  const { status } = spawnSync(node, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
  if (status !== 0) process.exit(status ?? 1);
}

/** Of all runs together: a line of JSON for each. */
function summary(lines) {
  const sums = {};
  for (const line of lines.trim().split('\n'))
    for (const [name, value] of Object.entries(JSON.parse(line))) sums[name] = (sums[name] ?? 0) + value;
  return `\n${Object.entries(sums)
    .map(([name, value]) => `ℹ ${name} ${value}\n`)
    .join('')}`;
}

/** The black-box tests again, on servers of several processes that meet in a real Redis. */
function runOnSeveral(...options) {
  const named = process.env.TRELLIS_REDIS_SERVER;
  const redis = named ?? 'redis-server';
  if (spawnSync(redis, ['--version']).status !== 0) {
    const why = named ? `${named} is none` : 'none is installed (Debian: redis-server)';
    return console.log(`# SKIPPED: the tests on ${PROCESSES} processes need a redis-server: ${why}`);
  }
  const files = readdirSync(join(root, 'complement-tests'))
    .filter((name) => name.endsWith('.test.ts') && !(name in ONE_PROCESS))
    .map((name) => join('complement-tests', name));
  const env = { TRELLIS_PROCESSES: String(PROCESSES), TRELLIS_REDIS_SERVER: redis };
  // One at a time: each is several processes already.
  runWith(
    env,
    `black-box tests on ${PROCESSES} processes`,
    ...options,
    '--test-concurrency=1',
    ...files.sort(),
  );
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
  runOnSeveral(...TEST, reporter);
  run(
    'operations of the specification',
    join(root, 'complement-tests', 'harness', 'openapi-report.ts'),
    seen,
  );
}
