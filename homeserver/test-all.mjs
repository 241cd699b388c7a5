// `npm test`: types, format and lint, then every test. With file names, only those tests.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const node = findNode();
const modules = join(root, 'node_modules');

function run(title, ...args) {
  console.log(`\n# ${title}`);
  const { status } = spawnSync(node, args, { cwd: root, stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

const files = process.argv.slice(2);
if (files.length === 0) {
  run('types', join(modules, 'typescript', 'bin', 'tsc'), '--noEmit');
  run('format and lint', join(modules, '@biomejs', 'biome', 'bin', 'biome'), 'check', '.');
}
const tests = files.length > 0 ? files : ['*/test/**/*.test.ts', 'complement-tests/*.test.ts'];
run('tests', '--test', '--test-concurrency=2', '--test-timeout=600000', ...tests);
