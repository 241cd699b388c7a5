import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { type Logger, pino } from 'pino';
import { commands } from './commands.ts';
import { ConfigError, loadConfig, readConfig } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { type RunningServer, startServer } from './server.ts';

/** Ctrl-C comes from the terminal, from npm and from launch.mjs: what comes within this time is one, in ms. */
const ONE_SIGNAL = 1000;

const HELP = `Usage: npm start -- [--config FILE]             starts the server
       npm run trellis -- COMMAND [--config FILE]

Without --config the file config.yaml in the current folder is used if it is there, else the defaults of
config.sample.yaml.

Commands:
${commands.map(({ name, args, says }) => `  ${`${name} ${args}`.padEnd(34)}${says}`).join('\n')}
`;

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      config: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
      admin: { type: 'boolean' },
      password: { type: 'string' },
    },
  });
  const [name = 'start', ...args] = positionals;
  if (values.help) return void process.stdout.write(HELP);
  const command = commands.find((known) => known.name === name);
  if (!command && name !== 'start') throw new ConfigError(`there is no command "${name}"\n\n${HELP}`);
  const config = configFrom(values.config);
  const { admin, password } = values;
  if (command) return command.run({ config, args, admin, password });
  await serve(config);
}

function configFrom(file: string | undefined): Config {
  if (file !== undefined) return loadConfig(file);
  const usual = join(process.cwd(), 'config.yaml');
  return existsSync(usual) ? loadConfig(usual) : readConfig('', process.cwd());
}

async function serve(config: Config): Promise<void> {
  const log = pino({ level: config.log.level, base: null }, pino.destination({ sync: false }));
  process.on('unhandledRejection', (err) =>
    log.error({ err }, 'a promise was rejected that nobody waited for'),
  );
  const server = await startServer(config, log);
  void server.failed.then((reason) => {
    log.fatal(reason);
    log.flush(() => process.exit(1));
  });
  // A terminal that closes says SIGHUP as well as whoever renewed the certificate.
  if (process.stdin.isTTY) process.on('SIGHUP', () => void stop(server, 'SIGHUP'));
  else reloadOnHangup(server, log);
  // Never without a listener: taking one away, if only for an instant, lets the next signal kill.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => void stop(server, signal));
  // launch.mjs was killed: nobody could tell this process to stop any more.
  process.on('disconnect', () => void stop(server, 'launch.mjs ended'));
  log.info({ server_name: config.server_name, http: config.http, tls: config.tls?.port }, 'started');
  greet(config);
}

function reloadOnHangup(server: RunningServer, log: Logger): void {
  process.on('SIGHUP', () => {
    server.reloadCertificate().then(
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
  const { message, code } = error as Error & { code?: string };
  if (error instanceof ConfigError || error instanceof MatrixError || code?.startsWith('ERR_PARSE_ARGS'))
    process.stderr.write(`${message}\n`);
  else if (code === 'EADDRINUSE')
    process.stderr.write(
      `${message}: another program uses that port; stop it, or change http.port or tls.port\n`,
    );
  else process.stderr.write(`Trellis could not start: ${(error as Error).stack ?? String(error)}\n`);
  process.exit(1);
});
