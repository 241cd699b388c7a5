import { RTC_FOCI, type RtcTransport } from '@trellis/client-api/rtc-transports.ts';
import type { Config } from '../config/schema.ts';

/** What the configuration names for calls; it may be among what `/.well-known` tells clients alone. */
export function rtcTransports({
  rtc,
  well_known: known,
}: Pick<Config, 'rtc' | 'well_known'>): RtcTransport[] {
  if (rtc.transports.length > 0) return rtc.transports as RtcTransport[];
  const foci: unknown = known.client?.[RTC_FOCI];
  return Array.isArray(foci) ? foci.filter((focus) => typeof focus?.type === 'string') : [];
}

/** What `/.well-known/matrix/client` says besides where the server is. */
export function clientExtra(config: Pick<Config, 'rtc' | 'well_known'>): Record<string, unknown> | undefined {
  const { client } = config.well_known;
  if (config.rtc.transports.length === 0) return client;
  return { [RTC_FOCI]: config.rtc.transports, ...client };
}
