/**
 * What differs between room versions, as data. Code asks for a property, never for a version's name.
 * https://spec.matrix.org/v1.18/rooms/
 */
export interface RoomVersion {
  readonly id: string;
  readonly stable: boolean;
  /** State resolution algorithm: v1 in room version 1, v2 in 2 to 11, v2.1 in 12. */
  readonly stateResolution: 'v1' | 'v2' | 'v2.1';
  /** `server`: the sender's server made the id (1, 2); `hash`: reference hash in unpadded base64 (3); `url-safe-hash`: since 4. */
  readonly eventIds: 'server' | 'hash' | 'url-safe-hash';
  /** Keys must be valid when the event was made (since 5). */
  readonly enforceKeyValidity: boolean;
  /** Canonical JSON's number rules are enforced on events (since 6). */
  readonly strictCanonicalJson: boolean;
  /** `type` and `state_key` are measured in bytes by all servers (since 11); before, most counted code points. */
  readonly sizesInBytes: boolean;
  /** `m.room.aliases` has its own auth rule and survives redaction (1 to 5). */
  readonly aliasesAuth: boolean;
  /** `notifications` of power levels are guarded by auth rules (since 6). */
  readonly notificationsAuth: boolean;
  /** Redactions are authorised by the auth rules (1, 2), not when applied (since 3). */
  readonly redactionAuth: boolean;
  readonly knocking: boolean;
  readonly restrictedJoins: boolean;
  readonly knockRestricted: boolean;
  /** Power levels must be integers, strings are refused (since 10). */
  readonly integerPowerLevels: boolean;
  /** Redaction algorithm by the room version that brought it. */
  readonly redactionRules: '1' | '6' | '8' | '9' | '11';
  /** `redacts` stands in content (since 11). */
  readonly redactsInContent: boolean;
  /** The creator is the sender of `m.room.create`; `content.creator` is gone (since 11). */
  readonly implicitCreator: boolean;
  /** The room id is the create event's hash; create is never among auth_events (12, MSC4291). */
  readonly roomIdIsCreateHash: boolean;
  /** Creators stand above all power levels (12, MSC4289). */
  readonly privilegedCreators: boolean;
  /** Users may only set state under their own id or one below it (MSC3757, `org.matrix.msc3757.10`). */
  readonly ownedState: boolean;
}

const v1: RoomVersion = {
  id: '1',
  stable: true,
  stateResolution: 'v1',
  eventIds: 'server',
  enforceKeyValidity: false,
  strictCanonicalJson: false,
  sizesInBytes: false,
  aliasesAuth: true,
  notificationsAuth: false,
  redactionAuth: true,
  knocking: false,
  restrictedJoins: false,
  knockRestricted: false,
  integerPowerLevels: false,
  redactionRules: '1',
  redactsInContent: false,
  implicitCreator: false,
  roomIdIsCreateHash: false,
  privilegedCreators: false,
  ownedState: false,
};
const v2: RoomVersion = { ...v1, id: '2', stateResolution: 'v2' };
const v3: RoomVersion = { ...v2, id: '3', eventIds: 'hash', redactionAuth: false };
const v4: RoomVersion = { ...v3, id: '4', eventIds: 'url-safe-hash' };
const v5: RoomVersion = { ...v4, id: '5', enforceKeyValidity: true };
const v6: RoomVersion = {
  ...v5,
  id: '6',
  strictCanonicalJson: true,
  aliasesAuth: false,
  notificationsAuth: true,
  redactionRules: '6',
};
const v7: RoomVersion = { ...v6, id: '7', knocking: true };
const v8: RoomVersion = { ...v7, id: '8', restrictedJoins: true, redactionRules: '8' };
const v9: RoomVersion = { ...v8, id: '9', redactionRules: '9' };
const v10: RoomVersion = { ...v9, id: '10', knockRestricted: true, integerPowerLevels: true };
const v11: RoomVersion = {
  ...v10,
  id: '11',
  sizesInBytes: true,
  redactionRules: '11',
  redactsInContent: true,
  implicitCreator: true,
};
const v12: RoomVersion = {
  ...v11,
  id: '12',
  stateResolution: 'v2.1',
  roomIdIsCreateHash: true,
  privilegedCreators: true,
};
const msc3757: RoomVersion = { ...v10, id: 'org.matrix.msc3757.10', stable: false, ownedState: true };

const versions = new Map(
  [v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, msc3757].map((version) => [version.id, version]),
);

/** The room version of that name, or `undefined` when Trellis does not know it. */
export function roomVersion(id: string): RoomVersion | undefined {
  return versions.get(id);
}

export function knownRoomVersions(): RoomVersion[] {
  return [...versions.values()];
}
