import type { HandshakeDeps } from '@trellis/federation/inbound/handshake.ts';
import { type InviteDeps, inviteRoutes } from '@trellis/federation/inbound/invite.ts';
import { joinRoutes } from '@trellis/federation/inbound/join.ts';
import { knockRoutes } from '@trellis/federation/inbound/knock.ts';
import { leaveRoutes } from '@trellis/federation/inbound/leave.ts';
import { onBindRoutes, thirdPartyInviteRoutes } from '@trellis/federation/inbound/third-party-invite.ts';
import { remoteExchange, remoteHandshakes } from '@trellis/federation/outbound/remote-membership.ts';
import type { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import type { RemoteMembership } from '@trellis/rooms/membership.ts';
import { Resync } from '@trellis/rooms/partial-state/resync.ts';
import type { Receiver } from '@trellis/rooms/receive.ts';
import { RemoteMembershipByHandshake } from '@trellis/rooms/remote-membership.ts';
import { ThirdPartyInvites } from '@trellis/rooms/third-party-invites.ts';
import type { FastifyInstance } from 'fastify';
import type { Core } from './core.ts';
import type { FederationTransport } from './federation.ts';

export interface HandshakeParts {
  readonly transport: FederationTransport;
  readonly receiver: Receiver;
  /** What receives events of a room waits with `settled` before it decides that this server is not in it. */
  readonly joins: JoinsUnderWay;
  /** Whether there is such a user here who can be invited. */
  readonly isLocalUser: InviteDeps['isLocalUser'];
  readonly mayInvite?: InviteDeps['mayInvite'];
  readonly requireSpace?: HandshakeDeps['requireSpace'];
}

export interface Handshakes {
  /** For `Membership`. */
  readonly remote: RemoteMembership;
  readonly thirdPartyInvites: ThirdPartyInvites;
  /** For servers that sign their requests. */
  routes(app: FastifyInstance): void;
  /** For identity servers, who do not. */
  openRoutes(app: FastifyInstance): void;
}

/** Memberships across servers, both ways. */
export function composeHandshakes(core: Core, parts: HandshakeParts): Handshakes {
  const { rooms, memberships } = core;
  const { receiver, joins, isLocalUser, mayInvite } = parts;
  const { client, keyRing: verifier } = parts.transport;
  const handshakes = remoteHandshakes(client);
  const resync = new Resync({
    rooms,
    receiver,
    deviceListsPosition: () => core.streams.deviceLists.current,
    log: core.log,
  });
  core.onReady(() => resync.start());
  core.onClose(() => resync.close());
  const remote = new RemoteMembershipByHandshake({
    rooms,
    memberships,
    handshakes,
    verifier,
    receiver,
    joins,
    resync,
  });
  const thirdPartyInvites = new ThirdPartyInvites({
    rooms,
    remote,
    mayInvite,
    exchange: remoteExchange(client),
  });
  const deps = { rooms, receiver, verifier, requireSpace: parts.requireSpace };
  return {
    remote,
    thirdPartyInvites,
    routes(app) {
      joinRoutes(app, deps);
      leaveRoutes(app, deps);
      knockRoutes(app, deps);
      inviteRoutes(app, { ...deps, isLocalUser, mayInvite });
      thirdPartyInviteRoutes(app, { rooms, thirdPartyInvites });
    },
    openRoutes(app) {
      onBindRoutes(app, { rooms, thirdPartyInvites, isLocalUser });
    },
  };
}
