import { limitExceeded } from '@trellis/client-api/rate-limits.ts';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { Membership, type MembershipParts } from '@trellis/rooms/membership.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { TokenBuckets } from '@trellis/users/token-buckets.ts';

/** How much group chats may grow; what is left out has no limit. */
export interface GroupLimits {
  /** Joined members of a room. */
  readonly roomMembers?: number | undefined;
  /** Rooms that a user is in. */
  readonly roomsJoined?: number | undefined;
  /** Rooms that a user has created and is in. */
  readonly roomsCreated?: number | undefined;
  /** Invites that a user sends in a day. */
  readonly invitesPerDay?: number | undefined;
  /** A page that tells users more of these limits. */
  readonly infoUri: string;
}

export interface LimitedMembershipParts extends MembershipParts {
  readonly db: Queryable;
  readonly limits: GroupLimits;
  /** Application services' users, administrators. */
  readonly isExempt: (userId: string) => Promise<boolean>;
}

const DAY_S = 24 * 3600;

/** Memberships within configured limits. Whoever is in keeps what they have when a limit is lowered. */
export class LimitedMembership extends Membership {
  readonly #parts: LimitedMembershipParts;
  readonly #invites: TokenBuckets | undefined;

  constructor(parts: LimitedMembershipParts) {
    super(parts);
    this.#parts = parts;
    const { invitesPerDay } = parts.limits;
    if (invitesPerDay !== undefined)
      this.#invites = new TokenBuckets({ perSecond: invitesPerDay / DAY_S, burst: invitesPerDay });
    // Each user's invites are counted by one process. The other limits are looked up, so that those who ask for several
    // things at the same moment may come by a little more.
    parts.rooms.parts.cluster.serve('limits.invite', (_none, userId) => this.#invites?.take(userId) ?? 0);
  }

  protected override async requireMayJoin(room: Room | undefined, userId: string): Promise<void> {
    const { memberships, limits, isExempt } = this.#parts;
    requireSpace(room?.count('join') ?? 0, limits);
    if (limits.roomsJoined === undefined || (await isExempt(userId))) return;
    const joined = (await memberships.joined(userId)).length;
    if (joined >= limits.roomsJoined)
      throw userLimitExceeded(`You are in ${joined} rooms, and may be in ${limits.roomsJoined}`, limits);
  }

  override async invite(
    roomId: string,
    sender: string,
    target: string,
    extra: JsonObject = {},
  ): Promise<void> {
    const { rooms, limits, isExempt } = this.#parts;
    const room = await rooms.get(roomId);
    if (room && !room.isJoined(target)) requireSpace(room.count('join'), limits);
    const { cluster } = rooms.parts;
    const isLimited = this.#invites !== undefined && !(await isExempt(sender));
    const wait = isLimited ? await cluster.call<number>('user', sender, 'limits.invite', null) : 0;
    if (wait > 0) throw limitExceeded(wait);
    await super.invite(roomId, sender, target, extra);
  }

  /** @throws M_USER_LIMIT_EXCEEDED when the user may create no more rooms */
  async requireMayCreate(userId: string): Promise<void> {
    const { db, memberships, limits, isExempt } = this.#parts;
    const { roomsCreated, roomsJoined } = limits;
    if ((roomsCreated === undefined && roomsJoined === undefined) || (await isExempt(userId))) return;
    const joined = (await memberships.joined(userId)).length;
    if (roomsJoined !== undefined && joined >= roomsJoined)
      throw userLimitExceeded(`You are in ${joined} rooms, and may be in ${roomsJoined}`, limits);
    if (roomsCreated === undefined) return;
    const [row] = await db.query<{ count: number }>(
      {
        name: 'rooms-created',
        text: `SELECT count(*) AS count FROM events e JOIN room_members m ON m.room = e.room AND m.user_id = e.sender
               WHERE e.type = 'm.room.create' AND e.sender = $1 AND m.membership = 'join'`,
      },
      [userId],
    );
    if (row!.count >= roomsCreated)
      throw userLimitExceeded(`You have created ${row!.count} rooms, and may create ${roomsCreated}`, limits);
  }
}

/** @throws M_FORBIDDEN when the room has as many members as it may have */
export function requireSpace(members: number, { roomMembers }: Pick<GroupLimits, 'roomMembers'>): void {
  if (roomMembers !== undefined && members >= roomMembers)
    throw forbidden(`The room is full: on this server a room has at most ${roomMembers} members`);
}

/** Spec: `M_USER_LIMIT_EXCEEDED`, which names a page that says more. */
function userLimitExceeded(message: string, { infoUri }: GroupLimits): MatrixError {
  return new MatrixError(403, 'M_USER_LIMIT_EXCEEDED', message, { info_uri: infoUri });
}
