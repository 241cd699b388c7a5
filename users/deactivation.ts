import type { Queryable } from '@trellis/storage/database.ts';
import type { Accounts } from './accounts.ts';
import type { Devices } from './devices.ts';
import type { Profiles } from './profiles.ts';
import type { UserDirectory } from './user-directory.ts';

export interface DeactivationDeps {
  readonly db: Queryable;
  readonly accounts: Accounts;
  readonly devices: Devices;
  readonly profiles: Profiles;
  readonly directory: UserDirectory;
}

/** Called for an account that is being deactivated. May be called again when it was cut off. */
export type DeactivationListener = (userId: string, options: { erase: boolean }) => Promise<void>;

/** Deactivates accounts (spec: "Account deactivation"): for good, and to the end even if it is interrupted. */
export class Deactivation {
  readonly #deps: DeactivationDeps;
  readonly #listeners: DeactivationListener[] = [];

  constructor(deps: DeactivationDeps) {
    this.#deps = deps;
  }

  /** For what else belongs to an account: it leaves its rooms, and with `erase` its data goes. */
  onDeactivated(listener: DeactivationListener): void {
    this.#listeners.push(listener);
  }

  async deactivate(userId: string, erase: boolean): Promise<void> {
    await this.#deps.accounts.markDeactivated(userId, erase);
    await this.#carryThrough(userId, erase);
  }

  /** Ends what an earlier stop has cut off. To be called at the start, when everyone listens. */
  async resume(): Promise<void> {
    const pending = await this.#deps.db.query<{ userId: string; erase: boolean }>(
      'SELECT user_id AS "userId", erase FROM pending_deactivations LIMIT 1000',
    );
    for (const { userId, erase } of pending) await this.#carryThrough(userId, erase);
  }

  async #carryThrough(userId: string, erase: boolean): Promise<void> {
    const { db, devices, profiles, directory } = this.#deps;
    await devices.deleteAll(userId);
    await directory.remove(userId);
    for (const listener of this.#listeners) await listener(userId, { erase });
    if (erase) await profiles.erase(userId);
    await db.query('DELETE FROM pending_deactivations WHERE user_id = $1', [userId]);
  }
}
