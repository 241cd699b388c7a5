import { after } from 'node:test';
import type { Database } from '@trellis/storage/database.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { Accounts, type AccountsDeps } from '../accounts.ts';
import { Devices } from '../devices.ts';
import { type PasswordConfig, Passwords } from '../passwords.ts';
import { Sessions, type SessionsDeps } from '../sessions.ts';

export const SERVER = 'example.org';
export const PASSWORD = 'correct horse';
/** Hashes as cheap as they can be. */
export const CHEAP: PasswordConfig = { memoryKib: 64, passes: 1 };

/** A database for the tests of one file, closed after them. */
export async function databaseForFile(): Promise<Database> {
  const { db, close } = await testDatabase();
  after(close);
  return db;
}

export function accountsOn(db: Database, deps: Partial<AccountsDeps> = {}): Accounts {
  return new Accounts({ db, serverName: SERVER, passwords: new Passwords(CHEAP), ...deps });
}

/** Devices with a record of what other users were told. */
export function devicesOn(db: Database) {
  const announced: Array<[userId: string, deviceIds: readonly string[]]> = [];
  const changed = async (userId: string, deviceIds: readonly string[]) => {
    announced.push([userId, deviceIds]);
  };
  const devices = new Devices({ db, deviceLists: { changed }, flushIntervalMs: 3_600_000 });
  after(() => devices.close());
  return { devices, announced };
}

export function sessionsOn(db: Database, deps: Partial<SessionsDeps> = {}) {
  const { devices, announced } = devicesOn(db);
  return { sessions: new Sessions({ db, devices, ...deps }), devices, announced };
}
