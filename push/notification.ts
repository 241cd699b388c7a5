import { stateKeyOf } from '@trellis/protocol/event.ts';
import type { Action } from '@trellis/protocol/push-rules/index.ts';
import { loadState } from '@trellis/rooms/auth-state.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { PushNotification } from './candidates.ts';
import type { PusherRow } from './pusher-table.ts';

/** How rooms and people are called in a notification. */
export interface RoomNames {
  readonly roomName: string | undefined;
  readonly roomAlias: string | undefined;
  readonly senderName: string | undefined;
}

const NAME = stateKeyOf('m.room.name', '');
const ALIAS = stateKeyOf('m.room.canonical_alias', '');

export async function namesFor(rooms: Rooms, { room, event }: PushNotification): Promise<RoomNames> {
  const member = stateKeyOf('m.room.member', event.sender);
  const state = await loadState(rooms, room.state, [NAME, ALIAS, member]);
  return {
    roomName: textOf(state.get('m.room.name', ''), 'name'),
    roomAlias: textOf(state.get('m.room.canonical_alias', ''), 'alias'),
    senderName: textOf(state.get('m.room.member', event.sender), 'displayname'),
  };
}

/** The body of `POST /_matrix/push/v1/notify` for an event, in the format that the pusher asks for. */
export async function eventNotification(
  rooms: Rooms,
  row: PusherRow,
  notification: PushNotification,
  unread: number,
): Promise<object> {
  const { event, outcome } = notification;
  const tweaks = tweaksOf(outcome.actions);
  const brief = {
    event_id: event.eventId,
    room_id: event.roomId,
    prio: priority(event, tweaks),
    counts: countsOf(unread),
  };
  if (row.data.format === 'event_id_only') return { ...brief, devices: [deviceOf(row)] };
  const { roomName, roomAlias, senderName } = await namesFor(rooms, notification);
  return {
    ...brief,
    type: event.type,
    sender: event.sender,
    ...(senderName !== undefined && { sender_display_name: senderName }),
    ...(roomName !== undefined && { room_name: roomName }),
    ...(roomAlias !== undefined && { room_alias: roomAlias }),
    ...(event.type === 'm.room.member' && { user_is_target: event.stateKey === row.userId }),
    content: event.content,
    devices: [{ ...deviceOf(row), tweaks }],
  };
}

/** Tells how much is unread, and of no event. */
export function badgeNotification(row: PusherRow, unread: number): object {
  // Zeros should be left out; that there is nothing any more is known by there being no number.
  return { prio: 'low', counts: countsOf(unread), devices: [deviceOf(row)] };
}

function countsOf(unread: number): object {
  return unread > 0 ? { unread } : {};
}

function deviceOf({ appId, pushkey, createdTs, data: { url: _, ...data } }: PusherRow): object {
  return { app_id: appId, pushkey, pushkey_ts: Math.floor(createdTs / 1000), data };
}

function tweaksOf(actions: readonly Action[]): Record<string, unknown> {
  const tweaks: Record<string, unknown> = {};
  for (const action of actions)
    if (typeof action === 'object' && action.set_tweak !== undefined)
      tweaks[action.set_tweak] = action.value ?? (action.set_tweak === 'highlight' ? true : undefined);
  return tweaks;
}

/** What makes no sound may wait; of encrypted events only the client can tell. */
function priority(event: StoredEvent, tweaks: Record<string, unknown>): 'high' | 'low' {
  const isLoud = event.type === 'm.room.encrypted' || tweaks.sound !== undefined || tweaks.highlight === true;
  return isLoud ? 'high' : 'low';
}

/** State of other servers may be of any shape and length. */
function textOf(event: StoredEvent | undefined, key: string): string | undefined {
  const text = event?.content[key];
  return typeof text === 'string' && text !== '' ? text.slice(0, 255) : undefined;
}
