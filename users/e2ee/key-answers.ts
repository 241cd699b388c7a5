import type { JsonObject } from '@trellis/protocol/event.ts';
import type { UserKeys } from './local-keys.ts';

/** A user's devices as `/keys/query` shows them: those with keys; of `wanted` only, unless that is empty. */
export function deviceJson({ devices }: UserKeys, wanted: readonly string[] = []): JsonObject {
  const shown = wanted.length > 0 ? [...new Set(wanted)] : [...devices.keys()];
  return Object.fromEntries(
    shown.flatMap((deviceId) => {
      const device = devices.get(deviceId);
      if (!device?.keys) return [];
      const unsigned: JsonObject = device.displayName ? { device_display_name: device.displayName } : {};
      return [[deviceId, { ...device.keys, unsigned }]];
    }),
  );
}
