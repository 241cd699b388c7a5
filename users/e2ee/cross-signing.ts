import { forbidden, invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { signaturesBy, verifyJson } from '@trellis/protocol/signing.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { DeviceListChanges } from '../device-lists.ts';
import {
  type CrossSigningUsage,
  isCrossSigningKey,
  publicKeyOf,
  sameJson,
  signingKeyOf,
} from './key-json.ts';
import { crossSigningKeys } from './local-keys.ts';

export type CrossSigningUpload = Partial<Record<CrossSigningUsage, JsonObject>>;

const USAGES = ['master', 'self_signing', 'user_signing'] as const;

/** The cross-signing keys of local users (spec: "Cross-signing"). */
export class CrossSigning {
  readonly #db: Queryable;
  readonly #lists: DeviceListChanges;

  constructor(db: Queryable, lists: DeviceListChanges) {
    this.#db = db;
    this.#lists = lists;
  }

  /** @throws M_INVALID_PARAM for what is no cross-signing key of the user */
  check(userId: string, upload: CrossSigningUpload): void {
    for (const usage of USAGES) {
      const key = upload[usage];
      if (key && !isCrossSigningKey(key, userId, usage))
        throw invalidParam(`The ${usage} key is not a valid cross-signing key of yours`);
    }
  }

  /**
   * Stores new keys. Those who have a master key already must be `authorised` to set others; keys that are there
   * already change nothing.
   *
   * @returns false when authorisation is needed
   * @throws M_MISSING_PARAM, M_INVALID_SIGNATURE, M_FORBIDDEN
   */
  async upload(userId: string, upload: CrossSigningUpload, authorised: boolean): Promise<boolean> {
    this.check(userId, upload);
    return this.#lists.record(async (tx, announce) => {
      // Two uploads at once must not both be the first.
      await tx.query('SELECT 1 FROM accounts WHERE user_id = $1 FOR NO KEY UPDATE', [userId]);
      const stored = new Map(
        (await crossSigningKeys(tx, [userId])).map((row) => [row.usage, decodeJson(row.json) as JsonObject]),
      );
      const fresh = USAGES.filter((usage) => upload[usage] && !isSameKey(upload[usage], stored.get(usage)));
      const master = upload.master ?? stored.get('master');
      if (!master) throw missingParam('There is no master key');
      if (fresh.length === 0) return true;
      if (stored.has('master') && !authorised) return false;
      for (const usage of fresh) checkSignature(userId, usage, upload[usage]!, master);
      await this.#checkAgainstDevices(tx, userId, upload, fresh);
      // What an old master key has signed means nothing under a new one.
      const replaced = fresh.includes('master') ? USAGES : fresh;
      await this.#remove(tx, userId, replaced);
      for (const usage of fresh)
        await tx.query(
          'INSERT INTO cross_signing_keys (user_id, usage, public_key, json) VALUES ($1, $2, $3, $4)',
          [userId, usage, publicKeyOf(upload[usage]!), JSON.stringify(upload[usage])],
        );
      announce({ userId });
      return true;
    });
  }

  /** Whether one of the user's keys is this one: devices must have other ids. */
  async has(userId: string, publicKey: string): Promise<boolean> {
    return (await crossSigningKeys(this.#db, [userId])).some((row) => row.publicKey === publicKey);
  }

  /** For an account that is deactivated. */
  async forget(userId: string): Promise<void> {
    await this.#lists.record((tx) => this.#remove(tx, userId, USAGES));
  }

  /** Removes keys and the signatures made by them. */
  async #remove(tx: Queryable, userId: string, usages: readonly CrossSigningUsage[]): Promise<void> {
    const removed = await tx.query<{ keyId: string }>(
      `DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = ANY($2)
       RETURNING 'ed25519:' || public_key AS "keyId"`,
      [userId, usages],
    );
    await tx.query('DELETE FROM key_signatures WHERE signer = $1 AND key_id = ANY($2)', [
      userId,
      removed.map(({ keyId }) => keyId),
    ]);
  }

  /** Keys and device ids share one namespace; what devices signed of the master key must be right. */
  async #checkAgainstDevices(
    tx: Queryable,
    userId: string,
    upload: CrossSigningUpload,
    fresh: readonly CrossSigningUsage[],
  ): Promise<void> {
    const names = fresh.map((usage) => publicKeyOf(upload[usage]!)!);
    const clash = await tx.query('SELECT 1 FROM devices WHERE user_id = $1 AND device_id = ANY($2)', [
      userId,
      names,
    ]);
    if (clash.length > 0) throw forbidden('A key is the same as the id of a device');
    const { master } = upload;
    if (!master || !fresh.includes('master')) return;
    const signers = Object.keys(signaturesBy(master, userId)).map((keyId) => keyId.slice('ed25519:'.length));
    const devices = await tx.query<{ id: string; json: string }>(
      'SELECT device_id AS id, json FROM device_keys WHERE user_id = $1 AND device_id = ANY($2)',
      [userId, signers.map((id) => id.replaceAll('\0', ''))],
    );
    for (const { id, json } of devices) {
      const key = signingKeyOf(decodeJson(json) as JsonObject, id);
      if (key === undefined || !verifyJson(master, userId, `ed25519:${id}`, key))
        throw invalidSignature("A device's signature of the master key is wrong");
    }
  }
}

function isSameKey(key: JsonObject, stored: JsonObject | undefined): boolean {
  return stored !== undefined && sameJson(key.keys, stored.keys);
}

function checkSignature(userId: string, usage: CrossSigningUsage, key: JsonObject, master: JsonObject): void {
  if (usage === 'master') return;
  const publicKey = publicKeyOf(master)!;
  if (!verifyJson(key, userId, `ed25519:${publicKey}`, publicKey))
    throw invalidSignature(`The ${usage} key is not signed by the master key`);
}

export function invalidSignature(message: string): MatrixError {
  return new MatrixError(400, 'M_INVALID_SIGNATURE', message);
}
