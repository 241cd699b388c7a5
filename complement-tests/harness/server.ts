import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeCertificate } from './certificate.ts';
import { Client, type Json, request } from './client.ts';
import { writeConfig } from './config.ts';
import { watch } from './conformance.ts';
import { freePort } from './ports.ts';

const ROOT = new URL('../../', import.meta.url).pathname;
const START_LIMIT_MS = 60_000;
const STOP_LIMIT_MS = 20_000;

export interface ServerOptions {
  /** Only a label, for the folder and messages. */
  name?: string;
  /** Merged over the harness's configuration, section by section. */
  config?: Json;
  /** Given the server's folder before it is started; hands back what is added to its environment. */
  prepare?: (folder: string) => Record<string, string>;
}

/** A Trellis in processes of its own, with its own data folder and embedded PostgreSQL. */
export class TestServer {
  readonly label: string;
  readonly folder: string;
  readonly configFile: string;
  readonly clientPort: number;
  readonly federationPort: number;
  private readonly environment: Record<string, string>;
  private process: ChildProcess | undefined;
  private users = 0;

  constructor(
    label: string,
    folder: string,
    configFile: string,
    clientPort: number,
    federationPort: number,
    environment: Record<string, string> = {},
  ) {
    this.environment = environment;
    this.label = label;
    this.folder = folder;
    this.configFile = configFile;
    this.clientPort = clientPort;
    this.federationPort = federationPort;
  }

  /** An address literal with the port of the federation listener: found without DNS. */
  get serverName(): string {
    return `127.0.0.1:${this.federationPort}`;
  }

  get url(): string {
    return `http://127.0.0.1:${this.clientPort}`;
  }

  get logFile(): string {
    return join(this.folder, 'server.log');
  }

  async start(): Promise<void> {
    const log = openSync(this.logFile, 'a');
    const { command, args, env } = this.command();
    // A process group of its own, so that a crash test can end all of it at once.
    const child = spawn(command, args, { cwd: ROOT, env, stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    this.process = child;
    const end = Date.now() + START_LIMIT_MS;
    while (!(await answers(this.url))) {
      if (child.exitCode !== null || child.signalCode !== null || Date.now() > end) {
        throw new Error(`${this.label} did not start:\n${this.log().slice(-4000)}`);
      }
      await new Promise((wake) => setTimeout(wake, 25));
    }
  }

  /**
   * TRELLIS_TEST_SERVER names the start script of another homeserver, in the form of start.sh: running the tests on
   * a second implementation shows which of them ask for more than the specification does.
   */
  private command(): { command: string; args: string[]; env: NodeJS.ProcessEnv } {
    const script = process.env.TRELLIS_TEST_SERVER;
    if (!script) {
      const args = [join(ROOT, 'homeserver/main.ts'), '--config', this.configFile];
      return { command: process.execPath, args, env: { ...process.env, ...this.environment } };
    }
    const env = {
      ...process.env,
      ...this.environment,
      SERVER_NAME: this.serverName,
      BIND_ADDRESS: '127.0.0.1',
      CLIENT_PORT: String(this.clientPort),
      FEDERATION_PORT: String(this.federationPort),
      DATA_DIR: join(this.folder, 'data'),
      TLS_CERT: join(this.folder, 'tls.crt'),
      TLS_KEY: join(this.folder, 'tls.key'),
      CA_CERT: join(this.folder, 'tls.crt'),
      APPSERVICE_DIR: join(this.folder, 'appservices'),
      REGISTRATION_SECRET: 'complement',
    };
    return { command: script, args: [], env };
  }

  /** Whether its process is there, be it paused. */
  get isRunning(): boolean {
    return this.process?.exitCode === null && this.process.signalCode === null;
  }

  /** Freezes the process (not its PostgreSQL), as a machine out of memory or a stopped container does. */
  pause(): void {
    if (this.isRunning) process.kill(-this.process!.pid!, 'SIGSTOP');
  }

  resume(): void {
    if (this.isRunning) process.kill(-this.process!.pid!, 'SIGCONT');
  }

  /** Ends the server as a service manager would, and waits. */
  async stop(): Promise<void> {
    const child = this.process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise<void>((done) => child.once('exit', () => done()));
    child.kill('SIGTERM');
    const late = setTimeout(() => this.kill(), STOP_LIMIT_MS);
    await exited;
    clearTimeout(late);
  }

  /** kill -9 of the whole process group and of PostgreSQL, which is in one of its own. */
  async kill(): Promise<void> {
    const child = this.process;
    if (!child?.pid) return;
    const exited =
      child.exitCode !== null || child.signalCode !== null
        ? Promise.resolve()
        : new Promise<void>((done) => child.once('exit', () => done()));
    this.killNow();
    await exited;
  }

  /** The same without waiting, for the end of the test process. */
  killNow(): void {
    const { pid, exitCode, signalCode } = this.process ?? {};
    if (!pid || exitCode !== null || signalCode !== null) return;
    const postgres = this.postgresPid();
    for (const target of postgres ? [-pid, postgres] : [-pid]) {
      try {
        process.kill(target, 'SIGKILL');
      } catch {
        // Ended already.
      }
    }
  }

  private postgresPid(): number | undefined {
    const file = join(this.folder, 'data', 'postgres', 'postmaster.pid');
    return existsSync(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) : undefined;
  }

  /** Stops and deletes everything. */
  async close(): Promise<void> {
    await this.stop();
    open.delete(this);
    if (process.env.TRELLIS_TEST_KEEP) process.stderr.write(`${this.label}: ${this.folder} is kept\n`);
    else rmSync(this.folder, { recursive: true, force: true });
  }

  log(): string {
    return readFileSync(this.logFile, 'utf8');
  }

  async register(localpart?: string, extra: Json = {}): Promise<Client> {
    this.users += 1;
    return register(this.url, localpart ?? `user${this.users}`, extra);
  }
}

export const PASSWORD = 'correct horse battery staple';

/** Makes an account on any server whose registration is open. */
export async function register(url: string, localpart: string, extra: Json = {}): Promise<Client> {
  const answer = await request(url, 'POST', '/_matrix/client/v3/register', {
    body: { username: localpart, password: PASSWORD, auth: { type: 'm.login.dummy' }, ...extra },
  });
  if (answer.status !== 200) throw new Error(`cannot register ${localpart}: ${JSON.stringify(answer.body)}`);
  return new Client(url, answer.body);
}

export async function login(url: string, user: string, extra: Json = {}): Promise<Client> {
  const answer = await request(url, 'POST', '/_matrix/client/v3/login', {
    body: { type: 'm.login.password', identifier: { type: 'm.id.user', user }, password: PASSWORD, ...extra },
  });
  if (answer.status !== 200) throw new Error(`cannot log in ${user}: ${JSON.stringify(answer.body)}`);
  return new Client(url, answer.body);
}

const open = new Set<TestServer>();
process.on('exit', () => {
  for (const server of open) server.killNow();
});

/** Starts a fresh server; servers of one test run trust each other's certificates. */
export async function startServer(options: ServerOptions = {}): Promise<TestServer> {
  const label = options.name ?? 'trellis';
  const folder = mkdtempSync(join(tmpdir(), `trellis-test-${label}-`));
  const [clientPort, federationPort] = [await freePort(), await freePort()];
  const configFile = join(folder, 'config.yaml');
  const dataDir = join(folder, 'data');
  mkdirSync(dataDir);
  const certificate = makeCertificate(folder);
  writeFileSync(
    configFile,
    writeConfig({ dataDir, clientPort, federationPort, certificate, extra: options.config ?? {} }),
  );
  const environment = options.prepare?.(folder) ?? {};
  const server = new TestServer(label, folder, configFile, clientPort, federationPort, environment);
  open.add(server);
  await server.start();
  watch(server.url);
  return server;
}

async function answers(url: string): Promise<boolean> {
  try {
    return (await request(url, 'GET', '/_matrix/client/versions')).status === 200;
  } catch {
    return false;
  }
}
