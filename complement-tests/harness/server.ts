import { type ChildProcess, execFile, spawn } from 'node:child_process';
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
import { type Certificate, makeCertificate } from './certificate.ts';
import { Client, request } from './client.ts';
import { writeConfig } from './config.ts';
import { watch } from './conformance.ts';
import type { Json } from './json.ts';
import { type Machine, THIS_MACHINE } from './machine.ts';
import { freePort } from './ports.ts';
import { Spread } from './spread.ts';
import { Surroundings } from './surroundings.ts';

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
  /** Not for several processes. */
  machine?: Machine;
}

/** TRELLIS_PROCESSES=4: each server is so many processes, with a Redis; requests come to each in turn. */
const PROCESSES = Number(process.env.TRELLIS_PROCESSES ?? 1);
/** TRELLIS_ROLES="client sync|federation-in federation-out|events jobs": what the first of them does, the second, … */
const ROLES = process.env.TRELLIS_ROLES?.split('|').map((roles) => roles.trim().split(' '));
/** TRELLIS_WORKERS=4: each server is one supervisor with so many workers. */
const WORKERS = Number(process.env.TRELLIS_WORKERS ?? 1);

interface Parts {
  readonly label: string;
  readonly machine: Machine;
  readonly folder: string;
  /** One for each process. */
  readonly configFiles: readonly string[];
  /** At which each process listens. */
  readonly clientPorts: readonly number[];
  /** At which all of them are reached. */
  readonly publicPort: number;
  readonly federationPort: number;
  readonly environment: Readonly<Record<string, string>>;
  /** What lies outside of its processes, and lives on while they are stopped. */
  readonly surroundings?: Surroundings | undefined;
  readonly spread?: Spread | undefined;
}

/** A Trellis in processes of its own, with its own data folder and embedded PostgreSQL. */
export class TestServer {
  readonly label: string;
  readonly folder: string;
  readonly federationPort: number;
  /** Of one process; all of them are behind `url`. */
  readonly clientPort: number;
  readonly #parts: Parts;
  #processes: ChildProcess[] = [];
  #users = 0;

  constructor(parts: Parts) {
    this.#parts = parts;
    this.label = parts.label;
    this.folder = parts.folder;
    this.federationPort = parts.federationPort;
    this.clientPort = parts.clientPorts[0]!;
  }

  /** An address literal with the port of the federation listener: found without DNS. */
  get serverName(): string {
    return `${this.#parts.machine.address}:${this.federationPort}`;
  }

  get url(): string {
    return `http://${this.#parts.machine.address}:${this.#parts.publicPort}`;
  }

  get logFile(): string {
    return join(this.folder, 'server.log');
  }

  async start(): Promise<void> {
    this.#processes = this.#parts.configFiles.map((file) => this.#spawn(file));
    const end = Date.now() + START_LIMIT_MS;
    for (const port of this.#parts.clientPorts)
      while (!(await answers(`http://${this.#parts.machine.address}:${port}`))) {
        if (this.#processes.some(hasEnded) || Date.now() > end)
          throw new Error(`${this.label} did not start:\n${this.log().slice(-4000)}`);
        await new Promise((wake) => setTimeout(wake, 25));
      }
  }

  #spawn(configFile: string): ChildProcess {
    const log = openSync(this.logFile, 'a');
    const { command, args, env } = this.command(configFile);
    // A process group of its own, so that a crash test can end all of it at once.
    const [program, ...given] = [...this.#parts.machine.prefix, command, ...args];
    const child = spawn(program!, given, { cwd: ROOT, env, stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    return child;
  }

  /**
   * TRELLIS_TEST_SERVER names the start script of another homeserver, in the form of start.sh: running the tests on
   * a second implementation shows which of them ask for more than the specification does.
   */
  private command(configFile: string): { command: string; args: string[]; env: NodeJS.ProcessEnv } {
    const script = process.env.TRELLIS_TEST_SERVER;
    if (!script) {
      const args = [join(ROOT, 'homeserver/main.ts'), '--config', configFile];
      return { command: process.execPath, args, env: { ...process.env, ...this.#parts.environment } };
    }
    const env = {
      ...process.env,
      ...this.#parts.environment,
      SERVER_NAME: this.serverName,
      BIND_ADDRESS: this.#parts.machine.address,
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

  /** Runs a command beside it. Resolves to what it says; rejects when it fails. */
  run(...args: readonly string[]): Promise<string> {
    const [file] = this.#parts.configFiles;
    return new Promise((said, failed) => {
      execFile(
        process.execPath,
        [join(ROOT, 'homeserver/main.ts'), ...args, '--config', file!],
        { cwd: ROOT },
        (error, out, err) => (error ? failed(new Error(out + err)) : said(out)),
      );
    });
  }

  /** Whether its processes are there, be they paused. */
  get isRunning(): boolean {
    return this.#processes.length > 0 && !this.#processes.some(hasEnded);
  }

  /** Freezes the processes (not PostgreSQL), as a machine out of memory or a stopped container does. */
  pause(): void {
    this.#signal('SIGSTOP');
  }

  resume(): void {
    this.#signal('SIGCONT');
  }

  /** Ends the server as a service manager would, and waits. */
  async stop(): Promise<void> {
    const ended = this.#end();
    for (const child of this.#processes) if (!hasEnded(child)) child.kill('SIGTERM');
    const late = setTimeout(() => this.killNow(), STOP_LIMIT_MS);
    await ended;
    clearTimeout(late);
  }

  /** kill -9 of the whole process group and of an embedded PostgreSQL, which is in one of its own. */
  async kill(): Promise<void> {
    const ended = this.#end();
    this.#killProcesses();
    await ended;
  }

  /** The same without waiting, for the end of the test process. */
  killNow(): void {
    this.#killProcesses();
    this.#parts.surroundings?.killNow();
  }

  #killProcesses(): void {
    const postgres = this.isRunning ? this.postgresPid() : undefined;
    this.#signal('SIGKILL');
    if (postgres) send(postgres, 'SIGKILL');
  }

  #signal(signal: NodeJS.Signals): void {
    for (const child of this.#processes) if (!hasEnded(child) && child.pid) send(-child.pid, signal);
  }

  async #end(): Promise<void> {
    await Promise.all(
      this.#processes.map(
        (child) => hasEnded(child) || new Promise<void>((done) => child.once('exit', () => done())),
      ),
    );
  }

  private postgresPid(): number | undefined {
    const file = join(this.folder, 'data', 'postgres', 'postmaster.pid');
    return existsSync(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) : undefined;
  }

  /** Stops and deletes everything. */
  async close(): Promise<void> {
    await this.stop();
    this.#parts.spread?.close();
    await this.#parts.surroundings?.stop();
    open.delete(this);
    if (process.env.TRELLIS_TEST_KEEP) process.stderr.write(`${this.label}: ${this.folder} is kept\n`);
    else rmSync(this.folder, { recursive: true, force: true });
  }

  log(): string {
    return readFileSync(this.logFile, 'utf8');
  }

  async register(localpart?: string, extra: Json = {}): Promise<Client> {
    this.#users += 1;
    return register(this.url, localpart ?? `user${this.#users}`, extra);
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
  mkdirSync(join(folder, 'data'));
  const certificate = makeCertificate(folder);
  const machine = options.machine ?? THIS_MACHINE;
  const parts = { label, folder, machine, environment: options.prepare?.(folder) ?? {} };
  const extra = options.config ?? {};
  const server = new TestServer(
    PROCESSES > 1 ? await several(parts, certificate, extra) : await one(parts, certificate, extra),
  );
  open.add(server);
  try {
    await server.start();
  } catch (error) {
    // Else what has started would keep the test process from ending.
    await server.close();
    throw error;
  }
  watch(server.url);
  return server;
}

type Common = Pick<Parts, 'label' | 'folder' | 'machine' | 'environment'>;

async function one(common: Common, certificate: Certificate, extra: Json): Promise<Parts> {
  const [clientPort, federationPort] = [await freePort(), await freePort()];
  const configFile = join(common.folder, 'config.yaml');
  const dataDir = join(common.folder, 'data');
  // So that each has something to do.
  const shared = WORKERS > 1 ? { workers: WORKERS, cluster: { fill: 0 } } : {};
  const caFile = certificate.certFile;
  const { address } = common.machine;
  writeFileSync(
    configFile,
    writeConfig({ address, dataDir, clientPort, federationPort, certificate, caFile, shared, extra }),
  );
  return {
    ...common,
    configFiles: [configFile],
    clientPorts: [clientPort],
    publicPort: clientPort,
    federationPort,
  };
}

/** The processes serve plain HTTP, at a port each; before them stands what spreads requests over them. */
async function several(common: Common, certificate: Certificate, extra: Json): Promise<Parts> {
  const { folder, machine } = common;
  if (machine !== THIS_MACHINE) throw new Error('several processes run on this machine only');
  const { address } = machine;
  const surroundings = await Surroundings.start(folder);
  const [publicPort, federationPort] = [await freePort(), await freePort()];
  const clientPorts: number[] = [];
  for (let i = 0; i < PROCESSES; i++) clientPorts.push(await freePort());
  const dataDir = join(folder, 'data');
  const caFile = certificate.certFile;
  const configFiles = clientPorts.map((clientPort, i) => {
    const file = join(folder, `config-${i + 1}.yaml`);
    const ports = { clientPort, publicPort, federationPort };
    const roles = ROLES ? { roles: ROLES[i % ROLES.length] } : {};
    const shared = {
      database: { url: surroundings.databaseUrl },
      redis: { url: surroundings.redisUrl },
      cluster: { secret: 'known to these processes only', drain_ms: 0, ...roles },
    };
    writeFileSync(
      file,
      writeConfig({ address, dataDir, ...ports, certificate: undefined, caFile, shared, extra }),
    );
    return file;
  });
  const spread = new Spread(clientPorts);
  await spread.listen(publicPort);
  const [cert, key] = [readFileSync(certificate.certFile, 'utf8'), readFileSync(certificate.keyFile, 'utf8')];
  await spread.listen(federationPort, { cert, key });
  return { ...common, configFiles, clientPorts, publicPort, federationPort, surroundings, spread };
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Ended already.
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    return (await request(url, 'GET', '/_matrix/client/versions')).status === 200;
  } catch {
    return false;
  }
}
