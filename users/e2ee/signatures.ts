import type { MatrixError } from '@trellis/protocol/errors.ts';
import { notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { signatureOf, signaturesBy, verifyJson } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { DeviceListChanges } from '../device-lists.ts';
import { invalidSignature } from './cross-signing.ts';
import { isName, isObject, publicKeyOf, sameWhenSigned, signingKeyOf } from './key-json.ts';
import { type KeySignature, localKeys, type UserKeys } from './local-keys.ts';

/** User id to device id or public key to the signed object. */
export type SignatureUpload = Readonly<Record<string, Readonly<Record<string, JsonValue>>>>;
export type SignatureFailures = Map<string, Map<string, MatrixError>>;

export interface SignaturesDeps {
  readonly db: Database;
  readonly lists: DeviceListChanges;
  /** The master key of any user, of this server or another. */
  readonly masterKey: (userId: string) => Promise<JsonObject | undefined>;
}

/** Signatures that users add to keys (spec: `POST /keys/signatures/upload`). */
export class Signatures {
  readonly #deps: SignaturesDeps;

  constructor(deps: SignaturesDeps) {
    this.#deps = deps;
  }

  /** Stores what is valid; says of all else what is wrong with it. */
  async upload(signer: string, upload: SignatureUpload): Promise<SignatureFailures> {
    const failures: SignatureFailures = new Map();
    const own = (await localKeys(this.#deps.db, [signer])).get(signer);
    const valid: KeySignature[] = [];
    for (const [userId, objects] of Object.entries(upload)) {
      const check = await this.#checker(signer, userId, own);
      for (const [target, object] of Object.entries(objects)) {
        const outcome = check(target, object);
        if (Array.isArray(outcome))
          valid.push(...outcome.map((made) => ({ ...made, userId, target, signer })));
        else failures.set(userId, (failures.get(userId) ?? new Map()).set(target, outcome));
      }
    }
    if (valid.length > 0) await this.#store(signer, valid);
    return failures;
  }

  async #checker(signer: string, userId: string, own: UserKeys | undefined) {
    if (userId === signer)
      return (target: string, object: JsonValue) =>
        own?.masterKey && publicKeyOf(own.masterKey) === target
          ? checkOwnMaster(signer, own, object)
          : checkOwnDevice(signer, own, target, object);
    const master = parseUserId(userId) && (await this.#deps.masterKey(userId));
    return (target: string, object: JsonValue) =>
      checkOthersMaster(signer, own, master || undefined, target, object);
  }

  async #store(signer: string, signatures: readonly KeySignature[]): Promise<void> {
    await this.#deps.lists.record(async (tx, announce) => {
      const stored = await tx.query<{ userId: string; target: string }>(
        `INSERT INTO key_signatures (user_id, target, signer, key_id, signature)
         SELECT user_id, target, $1, key_id, signature
         FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS s (user_id, target, key_id, signature)
         ON CONFLICT (user_id, target, signer, key_id) DO UPDATE SET signature = excluded.signature
           WHERE key_signatures.signature <> excluded.signature
         RETURNING user_id AS "userId", target`,
        [
          signer,
          signatures.map(({ userId }) => userId),
          signatures.map(({ target }) => target),
          signatures.map(({ keyId }) => keyId),
          signatures.map(({ signature }) => signature),
        ],
      );
      const devices = await tx.query<{ deviceId: string }>(
        'SELECT device_id AS "deviceId" FROM device_keys WHERE user_id = $1 AND device_id = ANY($2)',
        [signer, stored.map(({ target }) => target)],
      );
      const signedDevices = new Set(devices.map(({ deviceId }) => deviceId));
      for (const deviceId of signedDevices) announce({ userId: signer, deviceId });
      const others = new Set(
        stored.filter(({ target }) => !signedDevices.has(target)).map(({ userId }) => userId),
      );
      // Nobody else sees whom a user has verified.
      for (const userId of others) announce(userId === signer ? { userId } : { userId, onlyFor: signer });
    });
  }
}

type Made = { keyId: string; signature: string };

/** A device of one's own, signed by the self-signing key. */
function checkOwnDevice(
  userId: string,
  own: UserKeys | undefined,
  deviceId: string,
  object: JsonValue,
): Made[] | MatrixError {
  const stored = own?.devices.get(deviceId)?.keys;
  if (!stored) return notFound('There is no such device or master key');
  return checkSigned(userId, own?.selfSigningKey, stored, object);
}

/** Another's master key, signed by the user-signing key. */
function checkOthersMaster(
  signer: string,
  own: UserKeys | undefined,
  master: JsonObject | undefined,
  target: string,
  object: JsonValue,
): Made[] | MatrixError {
  if (!master || publicKeyOf(master) !== target) return notFound('The user has no such master key');
  return checkSigned(signer, own?.userSigningKey, master, object);
}

function checkSigned(
  signer: string,
  by: JsonObject | undefined,
  stored: JsonObject,
  object: JsonValue,
): Made[] | MatrixError {
  const key = by && publicKeyOf(by);
  if (key === undefined) return notFound('You have no key to sign this with');
  if (!isObject(object) || !sameWhenSigned(object, stored))
    return invalidSignature('The signed key is another one');
  const keyId = `ed25519:${key}`;
  const signature = signatureOf(object, signer, keyId);
  if (signature === undefined || !verifyJson(object, signer, keyId, key))
    return invalidSignature('Invalid signature');
  return [{ keyId, signature }];
}

/** One's own master key, signed by one's own devices. */
function checkOwnMaster(userId: string, own: UserKeys, object: JsonValue): Made[] | MatrixError {
  if (!isObject(object) || !sameWhenSigned(object, own.masterKey!))
    return invalidSignature('The signed key is another one');
  const made: Made[] = [];
  for (const [keyId, signature] of Object.entries(signaturesBy(object, userId))) {
    const deviceId = keyId.slice('ed25519:'.length);
    const device = isName(keyId) ? own.devices.get(deviceId)?.keys : undefined;
    const key = device && signingKeyOf(device, deviceId);
    if (key === undefined || typeof signature !== 'string') continue;
    if (!verifyJson(object, userId, keyId, key)) return invalidSignature('Invalid signature');
    made.push({ keyId, signature });
  }
  return made.length > 0 ? made : invalidSignature('There is no signature by a device');
}
