import { invalidParam } from '@trellis/protocol/errors.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { SharingChanges } from '../sync/people.ts';
import { profileNews, profilesExtensionJson } from '../sync/profiles.ts';
import { stickyExtensionJson } from '../sync/sticky.ts';
import { changesToken, subscriptionChanges } from '../thread-subscriptions.ts';
import { e2eeExtension, sharingNews } from './e2ee.ts';
import { dueRooms, type Extension, relevantRooms, type Told } from './extension.ts';
import { receiptsExtension } from './receipts.ts';
import type { ExtensionBody } from './schemas.ts';
import type { SlidingView } from './view.ts';

const THREADS = 'io.element.msc4308.thread_subscriptions';
const STICKY = 'org.matrix.msc4354.sticky_events';
const PROFILES = 'org.matrix.msc4262.profiles';
const TO_DEVICE_LIMIT = 100;
const THREADS_LIMIT = 100;

/** The extensions that a request asks for, as JSON text (MSC3884, 3885, 3959 to 3961, 4308). */
export async function extensionsJson(view: SlidingView, told: Told): Promise<Extension> {
  const { extensions } = view.request;
  const asksForPeople = extensions.e2ee?.enabled || extensions[PROFILES]?.enabled;
  const sharing = asksForPeople ? await sharingNews(view, told) : undefined;
  const found: Array<[name: string, extension: Extension | undefined]> = [
    ['to_device', await toDeviceExtension(view, extensions.to_device)],
    ['e2ee', extensions.e2ee?.enabled ? await e2eeExtension(view, sharing!) : undefined],
    ['account_data', await accountDataExtension(view, told, extensions.account_data)],
    ['receipts', await receiptsExtension(view, told, extensions.receipts)],
    ['typing', typingExtension(view, told, extensions.typing)],
    [THREADS, await threadsExtension(view, extensions[THREADS])],
    [STICKY, await stickyExtension(view, told, extensions[STICKY])],
    [PROFILES, await profilesExtension(view, sharing, extensions[PROFILES])],
  ];
  const texts: string[] = [];
  let empty = true;
  for (const [name, extension] of found) {
    if (!extension) continue;
    texts.push(`${JSON.stringify(name)}:${extension.json}`);
    empty &&= extension.empty;
  }
  return { json: `{${texts.join(',')}}`, empty };
}

async function toDeviceExtension(
  { sources, userId, deviceId, to }: SlidingView,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  if (!body?.enabled) return undefined;
  const since = sinceOf(body);
  const answer = (next: number, events: object[]) => ({
    json: JSON.stringify({ next_batch: String(next), events }),
    empty: events.length === 0,
  });
  if (deviceId === undefined) return answer(to.toDevice, []);
  if (since !== undefined && since > to.toDevice) return answer(since, []);
  if (since !== undefined) await sources.toDeviceReceived(userId, deviceId, since);
  const limit = Math.min(Math.max(body.limit ?? TO_DEVICE_LIMIT, 1), TO_DEVICE_LIMIT);
  const { events, upTo, more } = await sources.toDevice(userId, deviceId, since ?? 0, to.toDevice, limit);
  return answer(more ? upTo : to.toDevice, events);
}

async function accountDataExtension(
  view: SlidingView,
  told: Told,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  const { sources, userId, from, to } = view;
  const relevant = body?.enabled ? relevantRooms(told, body) : new Set<string>();
  const due = dueRooms(view, 'accountData', relevant, told.news.accountData);
  if (!body?.enabled) return undefined;
  type Item = { type: string; content: object };
  const global: Item[] = [];
  const rooms: Record<string, Item[]> = {};
  const starts = new Set([from?.accountData, ...due.values()]);
  // Nearly always one look, or with new rooms two.
  for (const start of starts)
    for (const { roomId, type, content } of await sources.accountData(userId, start, to.accountData)) {
      if (roomId === null) {
        if (start === from?.accountData) global.push({ type, content });
      } else if (due.has(roomId) && due.get(roomId) === start) {
        rooms[roomId] ??= [];
        rooms[roomId].push({ type, content });
      }
    }
  return {
    json: JSON.stringify({ global, rooms }),
    empty: global.length === 0 && Object.keys(rooms).length === 0,
  };
}

function typingExtension(
  view: SlidingView,
  told: Told,
  body: ExtensionBody | undefined,
): Extension | undefined {
  if (!body?.enabled) return undefined;
  const rooms: Record<string, object> = {};
  for (const roomId of relevantRooms(told, body)) {
    const isNew = view.from === undefined || told.results.get(roomId)?.anew === true;
    if (!isNew && !told.news.typing.has(roomId)) continue;
    if (told.memberships.get(roomId)?.membership !== 'join') continue;
    const userIds = view.sources.typing(roomId);
    if (isNew && userIds.length === 0) continue;
    rooms[roomId] = { type: 'm.typing', content: { user_ids: userIds } };
  }
  return { json: JSON.stringify({ rooms }), empty: Object.keys(rooms).length === 0 };
}

async function threadsExtension(
  { threads, userId, from, to }: SlidingView,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  if (!body?.enabled) return undefined;
  if (from !== undefined && from.accountData === to.accountData) return undefined;
  const limit = Math.min(Math.max(body.limit ?? THREADS_LIMIT, 1), THREADS_LIMIT);
  const { changes, more } = await threads.changes(userId, {
    from: from?.accountData,
    to: to.accountData,
    limit,
  });
  if (changes.length === 0) return undefined;
  const json = { ...subscriptionChanges(changes), ...(more && { prev_batch: changesToken(changes) }) };
  return { json: JSON.stringify(json), empty: false };
}

/** Sticky events (MSC4480), of all rooms of the user. */
async function stickyExtension(
  { sources: { sticky }, userId, deviceId, ignored, to }: SlidingView,
  { memberships }: Told,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  if (!body?.enabled || !sticky) return undefined;
  const since = sinceOf(body);
  const roomIds: string[] = [];
  for (const { roomId, membership } of memberships.values())
    if (membership === 'join' && sticky.has(roomId)) roomIds.push(roomId);
  return stickyExtensionJson({ sticky, userId, deviceId, ignored, roomIds, since, to: to.events });
}

async function profilesExtension(
  { sources, userId, from, to }: SlidingView,
  sharing: SharingChanges | undefined,
  body: ExtensionBody | undefined,
): Promise<Extension | undefined> {
  const { profileChanges: changes, memberships, rooms } = sources;
  if (!body?.enabled || !changes || !sharing) return undefined;
  const isLocal = (other: string) => serverNameOf(other) === rooms.parts.serverName;
  const { fields = [] } = body;
  const json = profilesExtensionJson(
    await profileNews({ changes, memberships, userId, isLocal, fields, since: from, to, ...sharing }),
  );
  return json === undefined ? undefined : { json, empty: false };
}

/** @throws M_INVALID_PARAM */
function sinceOf({ since: text }: ExtensionBody): number | undefined {
  if (text === undefined) return undefined;
  const since = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(since))
    throw invalidParam('since is no token of this server');
  return since;
}
