import type { Config } from '../config/schema.ts';
import type { GroupLimits } from '../membership-limits.ts';
import type { AccountsArea } from './accounts.ts';
import type { Core } from './core.ts';
import { noticesSender } from './server-notices.ts';

export function groupLimits({ limits, public_url: publicUrl, server_name: name }: Config): GroupLimits {
  return {
    roomMembers: limits.room_members,
    roomsJoined: limits.rooms_joined,
    roomsCreated: limits.rooms_created,
    invitesPerDay: limits.invites_per_day,
    infoUri: limits.info_uri ?? publicUrl ?? `https://${name}`,
  };
}

/** Whom the limits of single users do not bind: administrators, application services' users, the server itself. */
export function isExempt(core: Core, { accounts, appservices }: AccountsArea) {
  return async (userId: string): Promise<boolean> => {
    if (userId === noticesSender(core) || appservices.exclusiveOwner(userId)) return true;
    return (await accounts.get(userId))?.isAdmin ?? false;
  };
}
