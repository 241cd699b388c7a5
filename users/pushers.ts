import { Buffer } from 'node:buffer';
import { invalidParam, missingParam, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { Devices } from './devices.ts';

/** A pusher as clients set it and see it. */
export interface Pusher {
  readonly pushkey: string;
  readonly kind: string;
  readonly app_id: string;
  readonly app_display_name: string;
  readonly device_display_name: string;
  readonly profile_tag?: string;
  readonly lang: string;
  readonly data: JsonObject;
  /** Whether it is told of anything (MSC3881); switched off by any of the user's devices. */
  readonly enabled: boolean;
}

/** The body of `POST /pushers/set`, each member of the right type. */
export interface PusherRequest extends Partial<Omit<Pusher, 'kind'>> {
  readonly kind: string | null;
  readonly app_id: string;
  readonly pushkey: string;
  readonly append?: boolean;
}

export interface StoredPusher extends Pusher {
  readonly userId: string;
  readonly deviceId: string | null;
  /** Position in the stream of events from which on it is told of notifications. */
  readonly pos: number;
}

export interface PushersDeps {
  readonly db: Database;
  readonly devices: Devices;
  /** Where the stream of events stands. */
  readonly eventPosition: () => number;
  /** Push gateways may be reached without TLS. */
  readonly allowInsecure?: boolean;
}

const MAX_PUSHKEY_BYTES = 512;
const MAX_APP_ID_LENGTH = 64;
const MAX_TEXT_LENGTH = 1024;
const MAX_DATA_LENGTH = 16 * 1024;
const MAX_PUSHERS = 100;
const EMAIL_APP = 'm.email';
const GATEWAY_PATH = '/_matrix/push/v1/notify';

const COLUMNS = `user_id AS "userId", app_id, pushkey, kind, app_display_name, device_display_name, profile_tag, lang,
  data, enabled, device_id AS "deviceId", pos`;

/**
 * A pusher that is switched on begins anew. It stays that of its device when another one does no more than switch it
 * (MSC3881). One that could not deliver is tried again at once: what was wrong with it may be what has changed.
 */
const UPSERT = `
  INSERT INTO pushers (user_id, app_id, pushkey, kind, app_display_name, device_display_name, profile_tag, lang, data,
                       device_id, pos, created_ts, enabled)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
  ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET kind = EXCLUDED.kind,
    app_display_name = EXCLUDED.app_display_name, device_display_name = EXCLUDED.device_display_name,
    profile_tag = EXCLUDED.profile_tag, lang = EXCLUDED.lang, data = EXCLUDED.data, enabled = EXCLUDED.enabled,
    device_id = CASE WHEN pushers.enabled <> EXCLUDED.enabled AND (pushers.kind, pushers.data, pushers.lang)
      = (EXCLUDED.kind, EXCLUDED.data, EXCLUDED.lang) THEN pushers.device_id ELSE EXCLUDED.device_id END,
    pos = CASE WHEN pushers.enabled THEN pushers.pos ELSE EXCLUDED.pos END,
    due_ts = CASE WHEN pushers.enabled AND EXCLUDED.enabled THEN least(pushers.due_ts, EXCLUDED.created_ts) END`;

/** Pushers of local users (spec: "Push Notifications"). A pusher goes with the device whose access token set it. */
export class Pushers {
  readonly #db: Database;
  readonly #eventPosition: () => number;
  readonly #allowInsecure: boolean;
  readonly #listeners: Array<(userId: string) => void> = [];

  constructor({ db, devices, eventPosition, allowInsecure = false }: PushersDeps) {
    this.#db = db;
    this.#eventPosition = eventPosition;
    this.#allowInsecure = allowInsecure;
    devices.onDeviceDeleted(async (tx, userId, deviceIds) => {
      await tx.query('DELETE FROM pushers WHERE user_id = $1 AND device_id = ANY($2)', [userId, deviceIds]);
      return () => this.#tell(userId);
    });
  }

  /** Called after a user's pushers changed. */
  onChange(listener: (userId: string) => void): void {
    this.#listeners.push(listener);
  }

  async of(userId: string): Promise<StoredPusher[]> {
    const rows = await this.#db.query<Omit<StoredPusher, 'data'> & { data: string }>(
      `SELECT ${COLUMNS} FROM pushers WHERE user_id = $1 ORDER BY created_ts, app_id, pushkey`,
      [userId],
    );
    return rows.map((row) => ({ ...row, data: decodeJson(row.data) as JsonObject }));
  }

  /** @throws M_MISSING_PARAM, M_INVALID_PARAM, M_TOO_LARGE */
  async set(userId: string, deviceId: string | undefined, request: PusherRequest): Promise<void> {
    checkKey(request);
    const { app_id, pushkey, append = false } = request;
    if (request.kind === null) {
      await this.delete(userId, app_id, pushkey);
      return;
    }
    const pusher = await this.#checked(userId, request);
    const others = await this.#db.transaction(async (tx) => {
      const gone = append ? [] : await takeFromOthers(tx, userId, app_id, pushkey);
      await this.#store(tx, userId, deviceId, pusher);
      return gone;
    });
    for (const changed of [userId, ...others]) this.#tell(changed);
  }

  async delete(userId: string, appId: string, pushkey: string): Promise<void> {
    await this.#db.query('DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3', [
      userId,
      appId,
      pushkey,
    ]);
    this.#tell(userId);
  }

  /** An address is no longer the user's: no mail goes there any more. */
  async deleteAddress(userId: string, address: string): Promise<void> {
    await this.delete(userId, EMAIL_APP, address);
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM pushers WHERE user_id = $1', [userId]);
    this.#tell(userId);
  }

  #tell(userId: string): void {
    for (const listener of this.#listeners) listener(userId);
  }

  async #checked(userId: string, request: PusherRequest): Promise<Pusher> {
    const { kind, app_id, pushkey, app_display_name, device_display_name, profile_tag, lang, data } = request;
    const { enabled = true } = request;
    const required = { app_display_name, device_display_name, lang, data };
    const missing = Object.entries(required).flatMap(([name, value]) => (value === undefined ? [name] : []));
    if (missing.length > 0) throw missingParam(`Missing parameters: ${missing.join(', ')}`);
    for (const text of [app_display_name!, device_display_name!, lang!, profile_tag ?? '']) checkText(text);
    if (JSON.stringify(data).length > MAX_DATA_LENGTH) throw tooLarge('data is too large');
    if (kind === 'http') this.#checkUrl(data!.url);
    else if (kind === 'email') await this.#checkAddress(userId, app_id, pushkey);
    else throw invalidParam('Unknown kind of pusher');
    return {
      kind,
      app_id,
      pushkey,
      app_display_name: app_display_name!,
      device_display_name: device_display_name!,
      ...(profile_tag !== undefined && { profile_tag }),
      lang: lang!,
      data: data!,
      enabled,
    };
  }

  #checkUrl(url: unknown): void {
    if (url === undefined) throw missingParam('Missing parameters: data.url');
    const parsed = typeof url === 'string' ? URL.parse(url) : null;
    const isSecure = parsed?.protocol === 'https:' || (this.#allowInsecure && parsed?.protocol === 'http:');
    if (!parsed || !isSecure || parsed.pathname !== GATEWAY_PATH)
      throw invalidParam(`data.url must be an HTTPS URL with the path ${GATEWAY_PATH}`);
  }

  async #checkAddress(userId: string, appId: string, address: string): Promise<void> {
    if (appId !== EMAIL_APP) throw invalidParam('The app_id of email pushers is m.email');
    const rows = await this.#db.query(
      `SELECT 1 FROM account_threepids WHERE user_id = $1 AND medium = 'email' AND address = $2`,
      [userId, address],
    );
    if (rows.length === 0) throw invalidParam('That is no address of this account');
  }

  async #store(tx: Queryable, userId: string, deviceId: string | undefined, pusher: Pusher): Promise<void> {
    const { app_id, pushkey } = pusher;
    const rows = await tx.query<{ others: number }>(
      'SELECT count(*) AS others FROM pushers WHERE user_id = $1 AND (app_id, pushkey) <> ($2, $3)',
      [userId, app_id, pushkey],
    );
    if (rows[0]!.others >= MAX_PUSHERS) throw tooLarge(`No more than ${MAX_PUSHERS} pushers can be set`);
    await tx.query(UPSERT, [
      userId,
      app_id,
      pushkey,
      pusher.kind,
      pusher.app_display_name,
      pusher.device_display_name,
      pusher.profile_tag ?? null,
      pusher.lang,
      JSON.stringify(pusher.data),
      deviceId ?? null,
      this.#eventPosition(),
      Date.now(),
      pusher.enabled,
    ]);
  }
}

/** @returns those who had a pusher of that key */
async function takeFromOthers(
  tx: Queryable,
  userId: string,
  appId: string,
  pushkey: string,
): Promise<string[]> {
  const rows = await tx.query<{ userId: string }>(
    `DELETE FROM pushers WHERE app_id = $2 AND pushkey = $3 AND user_id <> $1 RETURNING user_id AS "userId"`,
    [userId, appId, pushkey],
  );
  return rows.map((row) => row.userId);
}

function checkKey({ app_id, pushkey }: PusherRequest): void {
  checkText(app_id);
  checkText(pushkey);
  if (app_id.length > MAX_APP_ID_LENGTH)
    throw invalidParam(`app_id has at most ${MAX_APP_ID_LENGTH} characters`);
  if (Buffer.byteLength(pushkey) > MAX_PUSHKEY_BYTES)
    throw invalidParam(`pushkey has at most ${MAX_PUSHKEY_BYTES} bytes`);
}

function checkText(text: string): void {
  if (text.length > MAX_TEXT_LENGTH || text.includes('\0') || !text.isWellFormed())
    throw invalidParam('A text is too long, or has characters that it must not have');
}
