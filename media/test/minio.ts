import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { S3Client, type S3Options } from '../s3-client.ts';

const START_LIMIT_MS = 120_000;

export interface Minio {
  readonly options: S3Options;
  stop(): Promise<void>;
}

/** The program that the variable TRELLIS_MINIO names, or `minio` on the path; `undefined` when there is none. */
export function minioProgram(): string | undefined {
  const program = process.env.TRELLIS_MINIO ?? 'minio';
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return program;
  } catch {
    return undefined;
  }
}

/** A MinIO of its own with one empty bucket. */
export async function startMinio(program: string): Promise<Minio> {
  const folder = await mkdtemp(join(tmpdir(), 'trellis-minio-'));
  const [api, console] = [await freePort(), await freePort()];
  const options = {
    endpoint: `http://127.0.0.1:${api}`,
    region: 'us-east-1',
    bucket: 'media',
    accessKey: 'trellis-test',
    secretKey: randomBytes(20).toString('hex'),
    pathStyle: true,
  };
  const args = [
    'server',
    '--address',
    `127.0.0.1:${api}`,
    '--console-address',
    `127.0.0.1:${console}`,
    folder,
  ];
  const child = spawn(program, args, {
    stdio: 'ignore',
    env: { ...process.env, MINIO_ROOT_USER: options.accessKey, MINIO_ROOT_PASSWORD: options.secretKey },
  });
  const kill = () => child.kill('SIGKILL');
  process.on('exit', kill);
  const stop = async () => {
    process.off('exit', kill);
    await ended(child);
    await rm(folder, { recursive: true, force: true });
  };
  try {
    await answering(options.endpoint, child);
    const client = new S3Client(options);
    await (await client.call({ method: 'PUT' })).body.dump();
    await client.close();
  } catch (error) {
    await stop();
    throw error;
  }
  return { options, stop };
}

async function answering(endpoint: string, child: ChildProcess): Promise<void> {
  const end = Date.now() + START_LIMIT_MS;
  for (;;) {
    const answer = await fetch(`${endpoint}/minio/health/ready`).catch(() => undefined);
    if (answer?.status === 200) return;
    if (child.exitCode !== null || Date.now() > end) throw new Error('MinIO did not start');
    await wait(100);
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await exited;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address() as { port: number };
  await new Promise((closed) => server.close(closed));
  return port;
}
