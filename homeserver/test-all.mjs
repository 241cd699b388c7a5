import { spawnSync } from 'node:child_process';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const node = findNode();
const files = spawnSync(node, ['-e', "console.log(require('fs').globSync('*/test/*.test.ts').join('\\n'))"], {
  cwd: root,
  encoding: 'utf8',
})
  .stdout.trim()
  .split('\n');
const result = spawnSync(node, ['--test', '--test-concurrency=2', ...files], { cwd: root, stdio: 'inherit' });
process.exit(result.status ?? 1);
