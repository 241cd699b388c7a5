import { decodeJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Stream, ToDeviceChange } from '@trellis/storage/streams.ts';

/** What is known of the messages that wait for a device. */
interface Inbox {
  /** No message is below or above; 0 and 0 when there is none. */
  lowest: number;
  highest: number;
  loading: Promise<void> | undefined;
}

const MAX_INBOXES = 50_000;

/** The messages that wait for devices. Memory knows which devices have any, so that a sync asks for no other. */
export class Inboxes {
  readonly #db: Queryable;
  readonly #inboxes = new RecentlyUsed<string, Inbox>(MAX_INBOXES);

  constructor(db: Queryable, stream: Stream<ToDeviceChange>) {
    this.#db = db;
    stream.subscribe(
      (pos, { userId, deviceId }) => {
        const inbox = this.#inboxes.get(keyOf(userId, deviceId));
        if (!inbox) return;
        if (inbox.lowest === 0) inbox.lowest = pos;
        inbox.highest = Math.max(inbox.highest, pos);
      },
      () => this.#inboxes.clear(),
    );
  }

  async pending(
    userId: string,
    deviceId: string,
    from: number,
    to: number,
    limit: number,
  ): Promise<{ events: object[]; upTo: number; more: boolean }> {
    const none = { events: [], upTo: to, more: false };
    if (deviceId === '' || from >= to) return none;
    const inbox = await this.#inbox(userId, deviceId);
    if (inbox.highest <= from || inbox.lowest > to) return none;
    const rows = await this.#db.query<{ pos: number; json: string }>(
      {
        name: 'to-device-pending',
        text: `SELECT pos, json FROM to_device_messages
               WHERE user_id = $1 AND device_id = $2 AND pos > $3 AND pos <= $4 ORDER BY pos LIMIT $5`,
      },
      [userId, deviceId, from, to, limit + 1],
    );
    const shown = rows.slice(0, limit);
    const more = rows.length > limit;
    return {
      events: shown.map(({ json }) => decodeJson(json) as object),
      upTo: more ? shown.at(-1)!.pos : to,
      more,
    };
  }

  async received(userId: string, deviceId: string, position: number): Promise<void> {
    if (deviceId === '' || position <= 0) return;
    const inbox = await this.#inbox(userId, deviceId);
    if (inbox.lowest === 0 || inbox.lowest > position) return;
    await this.#db.query(
      {
        name: 'to-device-received',
        text: 'DELETE FROM to_device_messages WHERE user_id = $1 AND device_id = $2 AND pos <= $3',
      },
      [userId, deviceId, position],
    );
    if (inbox.highest > position) inbox.lowest = Math.max(inbox.lowest, position + 1);
    else {
      inbox.lowest = 0;
      inbox.highest = 0;
    }
  }

  forget(userId: string, deviceId: string): void {
    this.#inboxes.delete(keyOf(userId, deviceId));
  }

  async #inbox(userId: string, deviceId: string): Promise<Inbox> {
    const key = keyOf(userId, deviceId);
    let inbox = this.#inboxes.get(key);
    if (!inbox) {
      // In place before the question, so that no message that is announced meanwhile is missed.
      const fresh: Inbox = { lowest: 0, highest: 0, loading: undefined };
      fresh.loading = this.#load(userId, deviceId, fresh).catch((error) => {
        this.#inboxes.delete(key);
        throw error;
      });
      this.#inboxes.set(key, fresh);
      inbox = fresh;
    }
    if (inbox.loading) await inbox.loading;
    return inbox;
  }

  async #load(userId: string, deviceId: string, inbox: Inbox): Promise<void> {
    const [row] = await this.#db.query<{ lowest: number | null; highest: number | null }>(
      {
        name: 'to-device-extent',
        text: `SELECT min(pos) AS lowest, max(pos) AS highest FROM to_device_messages
               WHERE user_id = $1 AND device_id = $2`,
      },
      [userId, deviceId],
    );
    if (row?.lowest != null) {
      inbox.lowest = inbox.lowest === 0 ? row.lowest : Math.min(inbox.lowest, row.lowest);
      inbox.highest = Math.max(inbox.highest, row.highest ?? 0);
    }
    inbox.loading = undefined;
  }
}

function keyOf(userId: string, deviceId: string): string {
  return JSON.stringify([userId, deviceId]);
}
