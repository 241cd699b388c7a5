import type { Json } from '@trellis/cluster/cluster.ts';

/** So often the process that has a user hears that a device goes on syncing here: within the grace of a last sync. */
const RENEWAL = 20_000;

interface SyncingDevice {
  readonly userId: string;
  readonly deviceId: string;
  presence: string;
  /** Syncs that are waiting for their answer. */
  waiting: number;
  toldTs: number;
  /** Whether it has asked since that was told. */
  active: boolean;
}

/** What a sync does to the presence of its user. */
export interface PresenceOfSync {
  /** Resolves when all know of it, whether or not that went well; `undefined` where there is nothing to wait for. */
  readonly told: Promise<void> | undefined;
  /** To be called when the sync is answered. */
  done(): void;
}

/**
 * What this process tells of devices that sync here to those that have their users: what is new at once, and every now
 * and then that it goes on, so that a sync costs no call.
 */
export class OwnerNews {
  readonly #tell: (userId: string, method: string, args: Json) => Promise<void>;
  readonly #devices = new Map<string, SyncingDevice>();

  constructor(tell: (userId: string, method: string, args: Json) => Promise<void>) {
    this.#tell = tell;
  }

  sync(userId: string, deviceId: string, presence: string): PresenceOfSync {
    const key = `${userId} ${deviceId}`;
    let device = this.#devices.get(key);
    if (!device) {
      device = { userId, deviceId, presence, waiting: 0, toldTs: 0, active: true };
      this.#devices.set(key, device);
    }
    const now = Date.now();
    const isNew = device.presence !== presence || now - device.toldTs >= RENEWAL;
    device.presence = presence;
    device.active = true;
    device.waiting++;
    const told = isNew ? this.#send(device, now) : undefined;
    const syncing = device;
    return {
      told,
      done: () => {
        syncing.waiting--;
      },
    };
  }

  /** Of those that wait and were not told of for a while; forgets those that are no longer here. */
  renew(now: number): void {
    for (const [key, device] of this.#devices) {
      const isDue = now - device.toldTs >= RENEWAL;
      if (isDue && (device.waiting > 0 || device.active)) void this.#send(device, now);
      else if (isDue && device.waiting === 0) this.#devices.delete(key);
    }
  }

  /** Users may be another process's by now. */
  renewAll(now: number): void {
    for (const device of this.#devices.values()) void this.#send(device, now);
  }

  #send(device: SyncingDevice, now: number): Promise<void> {
    const { userId, deviceId, presence, active } = device;
    device.toldTs = now;
    device.active = false;
    return this.#tell(userId, 'presence.sync', { deviceId, presence, active }).catch(() => {
      device.toldTs = 0;
    });
  }
}
