// Plain JavaScript without dependencies: it runs before anything is installed, by any Node from 20 on.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
const modules = join(root, 'node_modules');
const stamp = join(modules, '.trellis-lock');

/** Installs dependencies when they are missing or older than the lock file. */
export function ensureInstalled() {
  const wanted = createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .digest('hex');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return;
  console.error('Installing dependencies (only the first time, and after upgrades)…');
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
  const result = spawnSync(npm, ['ci', '--no-fund', '--no-audit', '--loglevel=error'], {
    cwd: root,
    stdio: ['ignore', 2, 2],
  });
  if (result.status !== 0) {
    console.error(
      'npm ci failed: see above. Trellis needs Node 20 or later, npm, and access to an npm registry.',
    );
    process.exit(1);
  }
  writeFileSync(stamp, wanted);
}

/** The Node to run Trellis with: 26, from the npm package `node`, or the running one when it is new enough. */
export function findNode() {
  const candidates = [
    join(modules, 'node', 'bin', 'node'),
    join(modules, `node-${process.platform}-${process.arch}`, 'bin', 'node'),
    join(modules, 'node', 'node_modules', `node-${process.platform}-${process.arch}`, 'bin', 'node'),
  ];
  for (const candidate of candidates) if (existsSync(candidate)) return candidate;
  if (Number(process.versions.node.split('.')[0]) >= 26) return process.execPath;
  console.error(
    'Node 26 was not installed: run "npm install" with install scripts allowed for the package "node".',
  );
  process.exit(1);
}
