import type { FastifyInstance } from 'fastify';

/** How calls get from one client to others, say by a LiveKit service; what else there is to it depends on the type. */
export interface RtcTransport {
  readonly type: string;
  readonly [name: string]: unknown;
}

/** What clients that do not know the endpoint look for in `/.well-known/matrix/client`. */
export const RTC_FOCI = 'org.matrix.msc4143.rtc_foci';

/** The transports that this server has for calls (MSC4519, before it a part of MSC4143). */
export function rtcTransportsRoutes(
  app: FastifyInstance,
  { transports }: { readonly transports: readonly RtcTransport[] },
): void {
  app.get(
    '/_matrix/client/unstable/org.matrix.msc4143/rtc/transports',
    { config: { guests: true } },
    async () => ({ rtc_transports: transports }),
  );
}
