// Plain JavaScript without dependencies: it runs before anything is installed, by any Node from 20 on.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { ensureInstalled, findNode, root } from './launch-tools.mjs';

ensureInstalled();
const child = spawn(findNode(), [join(root, 'homeserver', 'main.ts'), ...process.argv.slice(2)], {
  // By the end of the channel it learns that this process was killed.
  stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
  env: { NODE_COMPILE_CACHE: join(root, 'node_modules', '.cache', 'compile'), ...process.env },
});
// Ctrl-C reaches the whole process group; a service manager's signal reaches only this process.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
let stopped = false;
child.on('message', (message) => {
  stopped ||= message === 'stopped';
});
child.on('exit', (code) => process.exit(stopped ? 0 : (code ?? 1)));
