import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { Accounts } from '@trellis/users/accounts.ts';
import { Passwords } from '@trellis/users/passwords.ts';
import { registrationsOf } from './compose/appservices.ts';
import { passwordConfig } from './compose/password-config.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { showConfig } from './config/show.ts';
import { openDatabase } from './open-database.ts';
import { signingKeyLine } from './signing-key-file.ts';

interface Invocation {
  readonly config: Config;
  readonly args: readonly string[];
  readonly admin?: boolean;
  readonly password?: string;
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

async function withAccounts(
  { config, args }: Invocation,
  work: (accounts: Accounts, name: string) => Promise<void>,
): Promise<void> {
  const [name] = args;
  if (name === undefined) throw new ConfigError('say which user: a name like "alice"');
  await mkdir(config.data_dir, { recursive: true });
  const { db, close } = await openDatabase(config, { beside: true });
  try {
    const passwords = new Passwords(passwordConfig(config));
    await work(new Accounts({ db, serverName: config.server_name, passwords }), name);
  } finally {
    await close();
  }
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
