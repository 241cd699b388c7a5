import { type Static, Type } from 'typebox';

const LISTS = 100;
const text = Type.Optional(Type.String());
const flag = Type.Optional(Type.Boolean());
const count = Type.Integer({ minimum: 0 });
const strings = Type.Optional(Type.Array(Type.String(), { maxItems: 200 }));
const types = Type.Optional(Type.Array(Type.Union([Type.String(), Type.Null()]), { maxItems: 100 }));
const range = Type.Array(count, { minItems: 2, maxItems: 2 });

const filters = Type.Object({
  is_dm: flag,
  spaces: strings,
  is_encrypted: flag,
  is_invited: flag,
  // Its name before.
  is_invite: flag,
  room_types: types,
  not_room_types: types,
  tags: strings,
  not_tags: strings,
  // Of the older dialect.
  room_name_like: text,
});

const element = Type.Object({ type: text, state_key: text });
const elements = Type.Optional(Type.Array(element, { maxItems: 500 }));
const room = {
  timeline_limit: count,
  required_state: Type.Object({ include: elements, exclude: elements, lazy_members: flag }),
};

const pair = Type.Array(Type.String(), { minItems: 2, maxItems: 2 });
const olderRoom = {
  timeline_limit: Type.Optional(count),
  required_state: Type.Optional(Type.Array(pair, { maxItems: 500 })),
};

const extension = Type.Object({
  enabled: flag,
  lists: Type.Optional(Type.Array(Type.String(), { maxItems: LISTS + 1 })),
  rooms: Type.Optional(Type.Array(Type.String(), { maxItems: 1_000 })),
  limit: Type.Optional(Type.Integer()),
  since: text,
  fields: Type.Optional(Type.Array(Type.String(), { maxItems: 100 })),
});
const extensions = Type.Object({
  to_device: Type.Optional(extension),
  e2ee: Type.Optional(extension),
  account_data: Type.Optional(extension),
  receipts: Type.Optional(extension),
  typing: Type.Optional(extension),
  'io.element.msc4308.thread_subscriptions': Type.Optional(extension),
  'org.matrix.msc4354.sticky_events': Type.Optional(extension),
  'org.matrix.msc4262.profiles': Type.Optional(extension),
});

const common = {
  conn_id: Type.Optional(Type.String({ maxLength: 255 })),
  txn_id: Type.Optional(Type.String({ maxLength: 255 })),
  pos: text,
  timeout: Type.Optional(Type.Integer()),
  set_presence: text,
  extensions: Type.Optional(extensions),
};

/** The body of `POST /_matrix/client/v4/sync` (MSC4186). */
export const syncBody = Type.Object({
  ...common,
  lists: Type.Optional(
    Type.Record(
      Type.String(),
      Type.Object({ ...room, range: Type.Optional(range), filters: Type.Optional(filters) }),
    ),
  ),
  room_subscriptions: Type.Optional(Type.Record(Type.String(), Type.Object(room))),
});

/** The same as clients sent it before the proposal was merged, still with names of MSC3575. */
export const olderSyncBody = Type.Object({
  ...common,
  lists: Type.Optional(
    Type.Record(
      Type.String(),
      Type.Object({
        ...olderRoom,
        ranges: Type.Optional(Type.Array(range, { maxItems: 100 })),
        slow_get_all_rooms: flag,
        filters: Type.Optional(filters),
      }),
    ),
  ),
  room_subscriptions: Type.Optional(Type.Record(Type.String(), Type.Object(olderRoom))),
});

export type SyncBody = Static<typeof syncBody>;
export type OlderSyncBody = Static<typeof olderSyncBody>;
export type FilterBody = Static<typeof filters>;
export type ExtensionBody = Static<typeof extension>;
export type ExtensionsBody = Static<typeof extensions>;
