import type { PresenceState } from '@trellis/storage/streams.ts';

/** MSC3026, under the name that it has until it is in the spec. */
export const BUSY = 'org.matrix.msc3026.busy';
/** The most present of a user's devices decides. */
const ORDER: readonly string[] = ['offline', 'unavailable', 'online', BUSY];

/** A device counts as there for so long after its last sync, in milliseconds. */
const SYNC_GRACE = 30_000;
/** Without activity for so long an online device is idle (spec: "Idle timeout"). */
const IDLE = 5 * 60_000;
/** Whoever did something within this time is currently active. */
const ACTIVE = 60_000;
/** Devices of a user that are looked at. */
const MAX_DEVICES = 50;

export const OFFLINE: PresenceState = {
  presence: 'offline',
  statusMsg: null,
  lastActiveTs: 0,
  currentlyActive: false,
};

export function isPresence(presence: string): boolean {
  return ORDER.includes(presence);
}

interface Device {
  presence: string;
  /** Syncs that are waiting for their answer. */
  syncing: number;
  seenTs: number;
  activeTs: number;
}

/** What a local user's devices say of their presence, taken together. */
export class PresentUser {
  statusMsg: string | null;
  /** What all were told of last. */
  told: PresenceState;
  #lastActiveTs: number;
  readonly #devices = new Map<string, Device>();

  constructor(known: PresenceState) {
    this.told = known;
    this.statusMsg = known.statusMsg;
    this.#lastActiveTs = known.lastActiveTs;
  }

  /** A device began to sync; `done` is called when it has its answer. */
  beginSync(deviceId: string, presence: string, now: number): () => void {
    const device = this.#device(deviceId, now);
    // Who is busy is not made online by a client that goes on syncing.
    if (!(device.presence === BUSY && presence === 'online')) device.presence = presence;
    if (presence === 'online') this.#bump(device, now);
    device.seenTs = now;
    device.syncing++;
    return () => {
      device.syncing--;
      device.seenTs = Date.now();
    };
  }

  /** Another process says that a device syncs there; `active` when it has asked since that was last said. */
  syncsElsewhere(deviceId: string, presence: string, active: boolean, now: number): void {
    const device = this.#device(deviceId, now);
    if (!(device.presence === BUSY && presence === 'online')) device.presence = presence;
    if (active && presence === 'online') this.#bump(device, now);
    device.seenTs = now;
  }

  /** The user says what they are. */
  set(deviceId: string, presence: string, statusMsg: string | null, now: number): void {
    const device = this.#device(deviceId, now);
    device.presence = presence;
    device.seenTs = now;
    if (presence !== 'offline') this.#bump(device, now);
    this.statusMsg = statusMsg;
  }

  /** The user did something, which makes idle devices online again. */
  active(now: number): void {
    this.#lastActiveTs = now;
    for (const device of this.#devices.values()) {
      device.activeTs = now;
      if (device.presence === 'unavailable') device.presence = 'online';
    }
  }

  /** The device that was there in the last run of the server, until it is clear whether it comes back. */
  expect(presence: string, now: number): void {
    const device = this.#device('', now);
    device.presence = presence;
    device.seenTs = now;
    device.activeTs = this.#lastActiveTs;
  }

  state(now: number): PresenceState {
    let best = 0;
    for (const [deviceId, device] of this.#devices) {
      if (device.syncing === 0 && now - device.seenTs > SYNC_GRACE) {
        this.#devices.delete(deviceId);
        continue;
      }
      const idle = device.presence === 'online' && now - device.activeTs > IDLE;
      best = Math.max(best, ORDER.indexOf(idle ? 'unavailable' : device.presence));
    }
    const presence = ORDER[best]!;
    return {
      presence,
      statusMsg: this.statusMsg,
      lastActiveTs: this.#lastActiveTs,
      currentlyActive: best >= ORDER.indexOf('online') && now - this.#lastActiveTs < ACTIVE,
    };
  }

  #bump(device: Device, now: number): void {
    device.activeTs = now;
    this.#lastActiveTs = now;
  }

  #device(deviceId: string, now: number): Device {
    let device = this.#devices.get(deviceId);
    if (!device) {
      device = { presence: 'offline', syncing: 0, seenTs: now, activeTs: 0 };
      if (this.#devices.size < MAX_DEVICES) this.#devices.set(deviceId, device);
    }
    return device;
  }
}
