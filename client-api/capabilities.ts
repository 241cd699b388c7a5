import { knownRoomVersions } from '@trellis/protocol/room-versions.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import type { FastifyInstance } from 'fastify';
import { requesterOf } from './authentication.ts';

export interface CapabilitiesDeps {
  readonly accounts: Accounts;
  readonly defaultRoomVersion: string;
  readonly threepidSessions: ThreepidSessions;
  /** Rooms are forgotten when they are left (MSC4267). */
  readonly forgetsOnLeave?: boolean;
}

/** `GET /capabilities` (spec: "Capabilities negotiation"). */
export function capabilitiesRoutes(
  app: FastifyInstance,
  { accounts, defaultRoomVersion, threepidSessions, forgetsOnLeave = false }: CapabilitiesDeps,
): void {
  const available = Object.fromEntries(
    knownRoomVersions().map(({ id, stable }) => [id, stable ? 'stable' : 'unstable']),
  );
  const changesThreepids = threepidSessions.supports('email') || threepidSessions.supports('msisdn');
  app.get('/_matrix/client/v3/capabilities', { config: { guests: true } }, async (request) => {
    const { userId, isAdmin, isGuest } = requesterOf(request);
    const hasPassword = (await accounts.get(userId))?.hasPassword ?? false;
    return {
      capabilities: {
        'm.room_versions': { default: defaultRoomVersion, available },
        'm.change_password': { enabled: hasPassword },
        'm.get_login_token': { enabled: hasPassword },
        'm.3pid_changes': { enabled: changesThreepids },
        'm.profile_fields': { enabled: true, ...(isGuest && { allowed: ['displayname'] }) },
        'm.set_displayname': { enabled: true },
        'm.set_avatar_url': { enabled: !isGuest },
        'm.forget_forced_upon_leave': { enabled: forgetsOnLeave },
        ...(isAdmin && {
          'm.account_moderation': { suspend: true, lock: true },
          // As it was called before v1.18.
          'uk.timedout.msc4323': { suspend: true, lock: true },
        }),
      },
    };
  });
}
