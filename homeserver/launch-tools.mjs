// Plain JavaScript without dependencies: it runs before anything is installed, by any Node from 20 on.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
const modules = join(root, 'node_modules');

/** Installs dependencies when some are missing or of another version than the lock file says. */
export function ensureInstalled() {
  if (isInstalled()) return;
  console.error('Installing dependencies (only the first time, and after upgrades)…');
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
  // Deprecations and the like are nothing to whoever wants to start a server.
  const args = ['install', '--no-save', '--no-fund', '--no-audit', '--loglevel=error'];
  const { status } = spawnSync(npm, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status === 0) return;
  console.error(
    'npm install failed: see above. Trellis needs Node 20 or later, npm, and access to an npm registry.',
  );
  process.exit(1);
}

/** By the record that npm keeps of what it has installed. */
function isInstalled() {
  const record = join(modules, '.package-lock.json');
  if (!existsSync(record)) return false;
  const installed = packagesIn(record);
  return Object.entries(packagesIn(join(root, 'package-lock.json'))).every(
    ([path, { version, optional, devOptional }]) =>
      !path.startsWith('node_modules/') ||
      optional ||
      devOptional ||
      (path in installed && installed[path].version === version),
  );
}

function packagesIn(lockFile) {
  return JSON.parse(readFileSync(lockFile, 'utf8')).packages;
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
