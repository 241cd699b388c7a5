import { type JsonObject, type JsonValue, stateKeyOf } from './event.ts';
import type { RoomVersion } from './room-versions.ts';

/** What the selection looks at: an event, or the draft of one. */
export interface Selecting {
  readonly type: string;
  readonly sender: string;
  readonly stateKey?: string | undefined;
  readonly content: JsonObject;
}

/**
 * The keys of the state that authorises an event, for its `auth_events`.
 * https://spec.matrix.org/v1.18/server-server-api/#auth-events-selection
 */
export function authEventKeys(event: Selecting, version: RoomVersion): string[] {
  const keys = new Set<string>();
  visitAuthState(event, version, (type, stateKey) => keys.add(stateKeyOf(type, stateKey)));
  return [...keys];
}

/** Calls `visit` for every type and state key of the selection; for some of them more than once. */
export function visitAuthState(
  event: Selecting,
  version: RoomVersion,
  visit: (type: string, stateKey: string) => void,
): void {
  if (event.type === 'm.room.create') return;
  // Since room version 12 the room id itself names the create event.
  if (!version.roomIdIsCreateHash) visit('m.room.create', '');
  visit('m.room.power_levels', '');
  visit('m.room.member', event.sender);
  if (event.type !== 'm.room.member' || event.stateKey === undefined) return;
  const { content } = event;
  const { membership } = content;
  visit('m.room.member', event.stateKey);
  if (membership === 'join' || membership === 'invite' || membership === 'knock')
    visit('m.room.join_rules', '');
  if (membership === 'invite') {
    const token = thirdPartyToken(content);
    if (token !== undefined) visit('m.room.third_party_invite', token);
  }
  const authoriser = content.join_authorised_via_users_server;
  if (membership === 'join' && version.restrictedJoins && typeof authoriser === 'string')
    visit('m.room.member', authoriser);
}

/** `third_party_invite.signed.token` of an invite. */
export function thirdPartyToken(content: JsonObject): string | undefined {
  const token = objectAt(objectAt(content.third_party_invite)?.signed)?.token;
  return typeof token === 'string' ? token : undefined;
}

export function objectAt(value: JsonValue | undefined): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : undefined;
}
