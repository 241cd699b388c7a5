import { availableParallelism } from 'node:os';
import type { Logger } from 'pino';
import { configFrom, explain, openLog, readCommandLine } from './command-line.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';
import type { RunningServer } from './running-server.ts';

/** Ctrl-C comes from the terminal, from npm and from launch.mjs: what comes within this time is one, in ms. */
const ONE_SIGNAL = 1000;

async function main(): Promise<void> {
  const { values, positionals } = readCommandLine();
  const [name = 'start', ...args] = positionals;
  if (name === 'start' && !values.help) return serve(configFrom(values.config));
  // A supervisor is to stay small: it loads nothing that it does not need.
  const { commands, help } = await import('./commands.ts');
  if (values.help) return void process.stdout.write(help());
  const command = commands.find((known) => known.name === name);
  if (!command) throw new ConfigError(`there is no command "${name}"\n\n${help()}`);
  const { config, help: _help, ...options } = values;
  return command.run({ config: configFrom(config), args, ...options });
}

async function serve(config: Config): Promise<void> {
  const workers = config.workers === 'auto' ? availableParallelism() : config.workers;
  const log = openLog(config, config.redis ? { pid: process.pid } : null);
  const server = workers > 1 ? await startSupervisor(config, workers, log) : await startAlone(config, log);
  void server.failed.then((reason) => {
    log.fatal(reason);
    log.flush(() => process.exit(1));
  });
  // A terminal that closes says SIGHUP as well as whoever renewed the certificate.
  if (process.stdin.isTTY) process.on('SIGHUP', () => void stop(server, 'SIGHUP'));
  else reloadOnHangup(server, log);
  process.on('SIGUSR2', () => {
    if (server.restart) void server.restart();
    else log.warn('one process alone cannot be replaced without a gap: stop it and start it again');
  });
  // Never without a listener: taking one away, if only for an instant, lets the next signal kill.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => void stop(server, signal));
  // launch.mjs was killed: nobody could tell this process to stop any more.
  process.on('disconnect', () => void stop(server, 'launch.mjs ended'));
  const { server_name, http, tls } = config;
  log.info({ server_name, http, tls: tls?.port, workers: workers > 1 ? workers : undefined }, 'started');
  greet(config);
}

async function startAlone(config: Config, log: Logger): Promise<RunningServer> {
  const { startServer } = await import('./server.ts');
  return startServer(config, log);
}

async function startSupervisor(config: Config, workers: number, log: Logger): Promise<RunningServer> {
  const { supervise } = await import('./supervisor.ts');
  return supervise(config, workers, log, process.argv.slice(2));
}

function reloadOnHangup(server: RunningServer, log: Logger): void {
  process.on('SIGHUP', () => {
    server.reload().then(
      () => log.info('certificate read again'),
      (err: unknown) => log.error({ err }, 'the certificate could not be read: the old one stays'),
    );
  });
}

let stopping = 0;

async function stop(server: RunningServer, reason: string): Promise<void> {
  if (stopping > 0) {
    // Who asks again after a while means it.
    if (Date.now() - stopping > ONE_SIGNAL) process.exit(1);
    return;
  }
  stopping = Date.now();
  process.stderr.write(`${reason}: stopping…\n`);
  await server.close();
  if (!process.connected) process.exit(0);
  // A late copy of the signal may still hit the process while it exits: launch.mjs is to know that all is well.
  process.send?.('stopped', () => process.exit(0));
}

function greet(config: Config): void {
  const { host, port } = config.http;
  const url = config.public_url ?? `http://${host === '0.0.0.0' ? 'localhost' : host}:${port}`;
  process.stderr.write(`
Trellis is running as ${config.server_name} at ${url}

  Make the first user:  npm run trellis -- register-user NAME --admin
  Then log in with any Matrix client (Element, Cinny, …): choose ${url} as its homeserver.
  Stop with Ctrl-C. Everything is kept in ${config.data_dir}
${config.server_name === 'localhost' ? '\n  To talk with other servers, set server_name to your domain first: see config.sample.yaml.\n' : ''}
`);
}

main().catch((error: unknown) => {
  process.stderr.write(`${explain(error)}\n`);
  process.exit(1);
});
