import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { SigningKey } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { Accounts } from '@trellis/users/accounts.ts';
import { Passwords } from '@trellis/users/passwords.ts';
import { registrationsOf } from './compose/appservices.ts';
import { passwordConfig } from './compose/password-config.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { showConfig } from './config/show.ts';
import { openDatabase } from './open-database.ts';
import { restartWorkers } from './restart-workers.ts';
import { inspectRoom } from './room-command.ts';
import { adoptKey, readSigningKey, signingKeyFile, signingKeyLine } from './signing-key-file.ts';

interface Invocation {
  readonly config: Config;
  readonly args: readonly string[];
  readonly admin?: boolean;
  readonly password?: string;
  readonly check?: boolean;
  readonly rebuild?: boolean;
}

interface Command {
  readonly name: string;
  readonly args: string;
  readonly says: string;
  run(invocation: Invocation): Promise<void>;
}

/** What can be done beside a running server, or without one. */
export const commands: readonly Command[] = [
  {
    name: 'check-config',
    args: '',
    says: 'reads the configuration and shows what is in force',
    async run({ config }) {
      registrationsOf(config);
      print(showConfig(config));
    },
  },
  {
    name: 'generate-key',
    args: '',
    says: 'prints a new signing key, in the form of signing.key',
    async run() {
      process.stdout.write(signingKeyLine(SigningKey.generate()));
    },
  },
  {
    name: 'restart',
    args: '',
    says: 'replaces the workers of a running server, one after the other',
    run: ({ config }) => restartWorkers(config, print),
  },
  {
    name: 'adopt-key',
    args: '',
    says: 'has all processes of the server sign with this signing key',
    async run({ config }) {
      const file = signingKeyFile(config);
      const key = await readSigningKey(file);
      if (!key) throw new ConfigError(`there is no ${file}`);
      await withDatabase(config, (db) => adoptKey(db, key));
      print(`The server signs with ${key.keyId} from now on.`);
    },
  },
  {
    name: 'room',
    args: 'ROOM_ID [--check|--rebuild]',
    says: "shows a room's graph; compares its state with it; makes it anew from it",
    async run({ config, args, check = false, rebuild = false }) {
      const roomId = args[0];
      const seen = await withDatabase(config, (db) => inspectRoom(config, db, { roomId, check, rebuild }));
      print(JSON.stringify(seen, null, 2));
    },
  },
  {
    name: 'register-user',
    args: 'NAME [--password P] [--admin]',
    says: 'makes an account; prints a password if none is given',
    run: (invocation) =>
      withAccounts(invocation, async (accounts, name) => {
        const password = invocation.password ?? randomBytes(12).toString('base64url');
        const { userId } = await accounts.create({
          localpart: name,
          password,
          admin: invocation.admin ?? false,
        });
        print(`${userId} is registered${invocation.admin ? ' as an administrator' : ''}.`);
        if (invocation.password === undefined) print(`Password: ${password}`);
      }),
  },
  {
    name: 'reset-password',
    args: 'NAME [--password P]',
    says: 'sets a new password; prints it if none is given',
    run: (invocation) =>
      withAccounts(invocation, async (accounts, name) => {
        const account = await accounts.find(name);
        if (!account) throw new ConfigError(`there is no user ${name}`);
        const password = invocation.password ?? randomBytes(12).toString('base64url');
        await accounts.setPassword(account.userId, password);
        print(`The password of ${account.userId} is set.`);
        if (invocation.password === undefined) print(`Password: ${password}`);
      }),
  },
];

export function help(): string {
  return `Usage: npm start -- [--config FILE]             starts the server
       npm run trellis -- COMMAND [--config FILE]

Without --config the file config.yaml in the current folder is used if it is there, else the defaults of
config.sample.yaml.

Commands:
${commands.map(({ name, args, says }) => `  ${`${name} ${args}`.padEnd(34)}${says}`).join('\n')}
`;
}

async function withAccounts(
  { config, args }: Invocation,
  work: (accounts: Accounts, name: string) => Promise<void>,
): Promise<void> {
  const [name] = args;
  if (name === undefined) throw new ConfigError('say which user: a name like "alice"');
  await withDatabase(config, async (db) => {
    const passwords = new Passwords(passwordConfig(config));
    await work(new Accounts({ db, serverName: config.server_name, passwords }), name);
  });
}

async function withDatabase<T>(config: Config, work: (db: Database) => Promise<T>): Promise<T> {
  await mkdir(config.data_dir, { recursive: true });
  const { db, close } = await openDatabase(config, { beside: true });
  try {
    return await work(db);
  } finally {
    await close();
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
