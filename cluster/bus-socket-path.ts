import { createHash, randomBytes } from 'node:crypto';
import { chmod, lstat, mkdir, readdir, unlink } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

/** Of `sun_path`, without its final zero, where it is shortest (macOS; Linux has 107). */
const MAX_PATH = 103;
const SUFFIX = '.sock';
/** 12 random characters and the suffix. */
const NAME_LENGTH = 17;

/** A socket as young as that may be about to be listened at: between the two nobody answers there. In milliseconds. */
const YOUNG = 10_000;

/** A path for a new socket in a folder that only this user can enter. Removes what dead processes have left there. */
export async function socketPath(folder: string): Promise<string> {
  const name = randomBytes(6).toString('hex') + SUFFIX;
  if (process.platform === 'win32') return `\\\\.\\pipe\\trellis-${name}`;
  const wanted = resolve(folder);
  const fits = Buffer.byteLength(wanted) + 1 + NAME_LENGTH <= MAX_PATH;
  const used = fits
    ? wanted
    : join(tmpdir(), `trellis-${createHash('sha256').update(wanted).digest('hex').slice(0, 16)}`);
  await ownFolder(used);
  await sweep(used);
  return join(used, name);
}

async function ownFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const found = await lstat(folder);
  if (!found.isDirectory() || found.uid !== process.getuid!())
    throw new Error(`${folder} is not a folder of this user`);
  if ((found.mode & 0o077) !== 0) await chmod(folder, 0o700);
}

async function sweep(folder: string): Promise<void> {
  const sockets = (await readdir(folder)).filter((name) => name.endsWith(SUFFIX));
  await Promise.all(
    sockets.map(async (name) => {
      const path = join(folder, name);
      if ((await isOld(path)) && (await isDeserted(path))) await unlink(path).catch(() => {});
    }),
  );
}

async function isOld(path: string): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined);
  return found !== undefined && Date.now() - found.mtimeMs > YOUNG;
}

function isDeserted(path: string): Promise<boolean> {
  return new Promise((answer) => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      answer(false);
    });
    socket.on('error', (error: NodeJS.ErrnoException) => answer(error.code === 'ECONNREFUSED'));
  });
}
