import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { makeCertificate } from '../certificate.ts';
import { request } from '../client.ts';
import { writeConfig } from '../config.ts';
import { THIS_MACHINE } from '../machine.ts';
import { freePort } from '../ports.ts';
import { Spread } from '../spread.ts';
import { PostgresPair } from './postgres-pair.ts';
import { Redis } from './redis.ts';

const ROOT = new URL('../../../', import.meta.url).pathname;
const START_LIMIT_MS = 60_000;

/** One process of the installation, which may be dead or asleep at times. */
export class Process {
  readonly name: string;
  readonly port: number;
  readonly #configFile: string;
  readonly #logFile: string;
  #child: ChildProcess | undefined;
  /** Why it does not serve at the moment, if so. */
  trouble: 'killed' | 'paused' | 'stopped' | undefined;
  /** Ended without being told to: shut out by the others, to be started again by whoever looks after it. */
  readonly endings: string[] = [];

  constructor(name: string, port: number, configFile: string, logFile: string) {
    this.name = name;
    this.port = port;
    this.#configFile = configFile;
    this.#logFile = logFile;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async start(): Promise<void> {
    this.trouble = undefined;
    const log = openSync(this.#logFile, 'a');
    const child = spawn(process.execPath, [join(ROOT, 'homeserver/main.ts'), '--config', this.#configFile], {
      cwd: ROOT,
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    this.#child = child;
    // As a service manager does.
    child.once('exit', (code, signal) => {
      if (this.#child !== child || this.trouble === 'killed' || this.trouble === 'stopped') return;
      this.endings.push(`${this.name} ended with ${code ?? signal}`);
      void sleep(100).then(() => {
        if (this.#child === child) void this.start().catch(() => {});
      });
    });
    for (const end = Date.now() + START_LIMIT_MS; !(await answers(this.url)); await sleep(25)) {
      if (this.#child !== child) return;
      if (Date.now() > end) throw new Error(`${this.name} did not start:\n${this.log().slice(-4000)}`);
    }
  }

  kill(): void {
    this.trouble = 'killed';
    this.#child?.kill('SIGKILL');
  }

  pause(): void {
    this.trouble = 'paused';
    this.#child?.kill('SIGSTOP');
  }

  resume(): void {
    this.trouble = undefined;
    this.#child?.kill('SIGCONT');
  }

  /** In good order. */
  async stop(): Promise<void> {
    this.trouble = 'stopped';
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<void>((done) => child.once('exit', () => done()));
    child.kill('SIGTERM');
    const late = setTimeout(() => child.kill('SIGKILL'), 40_000);
    await ended;
    clearTimeout(late);
  }

  log(): string {
    return readFileSync(this.#logFile, 'utf8');
  }
}

/** One homeserver of several processes, with a PostgreSQL that has a standby, and a Redis. */
export class Installation {
  readonly folder: string;
  readonly processes: readonly Process[];
  readonly postgres: PostgresPair;
  readonly redis: Redis;
  readonly federationPort: number;
  readonly caFile: string;
  readonly #spread: Spread;

  private constructor(parts: {
    folder: string;
    processes: readonly Process[];
    postgres: PostgresPair;
    redis: Redis;
    federationPort: number;
    caFile: string;
    spread: Spread;
  }) {
    this.folder = parts.folder;
    this.processes = parts.processes;
    this.postgres = parts.postgres;
    this.redis = parts.redis;
    this.federationPort = parts.federationPort;
    this.caFile = parts.caFile;
    this.#spread = parts.spread;
  }

  static async start(count: number): Promise<Installation> {
    const folder = mkdtempSync(join(tmpdir(), 'trellis-cluster-'));
    mkdirSync(join(folder, 'data'));
    const [postgres, redis] = await Promise.all([
      PostgresPair.start(join(folder, 'db')),
      Redis.start(folder),
    ]);
    const certificate = makeCertificate(folder);
    const federationPort = await freePort();
    const ports: number[] = [];
    for (let i = 0; i < count; i++) ports.push(await freePort());
    const processes = ports.map((clientPort, i) => {
      const file = join(folder, `config-${i + 1}.yaml`);
      const config = writeConfig({
        address: THIS_MACHINE.address,
        dataDir: join(folder, 'data'),
        clientPort,
        federationPort,
        certificate: undefined,
        caFile: certificate.certFile,
        shared: {
          database: { url: postgres.url },
          redis: { url: redis.url },
          cluster: { secret: 'known to these processes only', drain_ms: 500 },
        },
        extra: {},
      });
      writeFileSync(file, config);
      return new Process(`process ${i + 1}`, clientPort, file, join(folder, `log-${i + 1}`));
    });
    const spread = new Spread(ports);
    await spread.listen(federationPort, {
      cert: readFileSync(certificate.certFile, 'utf8'),
      key: readFileSync(certificate.keyFile, 'utf8'),
    });
    const caFile = certificate.certFile;
    const installation = new Installation({
      folder,
      processes,
      postgres,
      redis,
      federationPort,
      caFile,
      spread,
    });
    await Promise.all(processes.map((each) => each.start()));
    return installation;
  }

  get serverName(): string {
    return `127.0.0.1:${this.federationPort}`;
  }

  async close(): Promise<void> {
    for (const each of this.processes) if (each.trouble === 'paused') each.resume();
    await Promise.all(this.processes.map((each) => each.stop()));
    this.#spread.close();
    await this.redis.stop();
    await this.postgres.stop();
    if (process.env.TRELLIS_TEST_KEEP) process.stderr.write(`cluster: ${this.folder} is kept\n`);
    else rmSync(this.folder, { recursive: true, force: true });
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(2_000);
    return (await request(url, 'GET', '/_matrix/client/versions', { signal })).status === 200;
  } catch {
    return false;
  }
}
