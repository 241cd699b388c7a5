import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
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
import { eventually, request } from './client.ts';
import { freePort } from './ports.ts';

const REQUIREMENT = 'matrix-synapse>=1.120';

export function python3(): string | undefined {
  const found = spawnSync('python3', ['-c', 'import sys, venv; print(sys.executable)'], { encoding: 'utf8' });
  return found.status === 0 ? found.stdout.trim() : undefined;
}

/**
 * The Python of a virtual environment with Synapse in it, made on first use and kept for the next run:
 * TRELLIS_SYNAPSE_VENV names its folder.
 */
function synapsePython(): string {
  const folder = process.env.TRELLIS_SYNAPSE_VENV ?? join(tmpdir(), 'trellis-synapse-venv');
  const python = join(folder, 'bin', 'python');
  const installed =
    existsSync(python) && spawnSync(python, ['-c', 'import synapse.app.homeserver']).status === 0;
  if (!installed) {
    process.stderr.write(`Installing Synapse into ${folder}; this takes minutes, once\n`);
    execFileSync('python3', ['-m', 'venv', folder]);
    execFileSync(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', REQUIREMENT], {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
  }
  return python;
}

export interface SynapseServer {
  url: string;
  serverName: string;
  log(): string;
  close(): Promise<void>;
}

export async function startSynapse(): Promise<SynapseServer> {
  const python = synapsePython();
  const folder = mkdtempSync(join(tmpdir(), 'trellis-test-synapse-'));
  mkdirSync(join(folder, 'media'));
  const [clientPort, federationPort] = [await freePort(), await freePort()];
  const { certFile, keyFile } = makeCertificate(folder);
  const free = { per_second: 9999, burst_count: 9999 };
  const listener = (port: number, tls: boolean, names: string[]) => ({
    port,
    tls,
    type: 'http',
    bind_addresses: ['127.0.0.1'],
    resources: [{ names }],
  });
  const config = {
    server_name: `127.0.0.1:${federationPort}`,
    report_stats: false,
    signing_key_path: join(folder, 'signing.key'),
    media_store_path: join(folder, 'media'),
    pid_file: join(folder, 'pid'),
    database: { name: 'sqlite3', args: { database: join(folder, 'homeserver.db') } },
    listeners: [
      listener(clientPort, false, ['client']),
      listener(federationPort, true, ['federation', 'keys']),
    ],
    tls_certificate_path: certFile,
    tls_private_key_path: keyFile,
    federation_custom_ca_list: [certFile],
    ip_range_blacklist: [],
    trusted_key_servers: [],
    suppress_key_server_warning: true,
    macaroon_secret_key: 'tests',
    form_secret: 'tests',
    enable_registration: true,
    enable_registration_without_verification: true,
    bcrypt_rounds: 4,
    rc_message: free,
    rc_registration: free,
    rc_joins: { local: free, remote: free },
    rc_login: { address: free, account: free, failed_attempts: free },
    federation: { destination_min_retry_interval: '1s', destination_max_retry_interval: '5s' },
  };
  // JSON is YAML.
  const configFile = join(folder, 'homeserver.yaml');
  writeFileSync(configFile, JSON.stringify(config));
  const run = ['-m', 'synapse.app.homeserver', '--config-path', configFile];
  execFileSync(python, [...run, '--generate-keys'], { cwd: folder });
  const logFile = join(folder, 'log');
  const out = openSync(logFile, 'a');
  const child = spawn(python, run, { cwd: folder, stdio: ['ignore', out, out] });
  closeSync(out);
  const killNow = () => child.kill('SIGKILL');
  process.on('exit', killNow);
  const server: SynapseServer = {
    url: `http://127.0.0.1:${clientPort}`,
    serverName: config.server_name,
    log: () => readFileSync(logFile, 'utf8'),
    async close() {
      await end(child);
      process.off('exit', killNow);
      rmSync(folder, { recursive: true, force: true });
    },
  };
  await eventually(
    'Synapse to start',
    async () => {
      if (child.exitCode !== null) throw new Error(`Synapse did not start:\n${server.log().slice(-4000)}`);
      const answer = await request(server.url, 'GET', '/_matrix/client/versions').catch(() => undefined);
      return answer?.status === 200;
    },
    60_000,
  );
  return server;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = new Promise((done) => child.once('exit', done));
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await exited;
  clearTimeout(late);
}
