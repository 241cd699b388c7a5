import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import { selfSigned } from '@trellis/federation/test/certificate.ts';
import type { JsonObject, Pdu } from '@trellis/protocol/event.ts';
import { makeEvent } from '@trellis/protocol/make-event.ts';
import { signJson } from '@trellis/protocol/signing.ts';
import { ROOM_VERSION, type SimulatedEvent, type SimulatedRoom } from './room.ts';

export interface ResidentOptions {
  readonly room: SimulatedRoom;
  /** Answers `/send_join` with all members, whatever it is asked for. */
  readonly full: boolean;
}

interface Request {
  readonly server: string;
  readonly path: readonly string[];
  readonly query: URLSearchParams;
  readonly body: JsonObject;
}

/** A request, by its path, and when it came and was answered: milliseconds since the epoch. */
export interface Served {
  readonly name: string;
  readonly begun: number;
  readonly done: number;
}

type Answer = { status?: number; parts: Iterable<string> };

const HOUR = 3600_000;

/**
 * The servers of a simulated room, each on its port. Any of them answers whatever a server that joins may ask; none
 * looks at signatures of requests, and events that it is sent are taken and forgotten, joins excepted.
 */
export class ResidentServers {
  readonly #options: ResidentOptions;
  readonly #byId: Map<string, SimulatedEvent>;
  /** Our view of where each event of a join stands: the state before it is all that came first. */
  readonly #joins = new Map<string, SimulatedEvent>();
  readonly served: Served[] = [];

  constructor(options: ResidentOptions) {
    this.#options = options;
    this.#byId = new Map(options.room.events.map((event) => [event.id, event]));
  }

  async listen(): Promise<void> {
    const tls = selfSigned(['127.0.0.1']);
    for (const server of this.#options.room.keys.keys()) {
      const https = createServer(tls, (request, response) => {
        this.#handle(server, request, response).catch((error: unknown) => {
          console.error(error);
          response.writeHead(500).end('{"errcode":"M_UNKNOWN"}');
        });
      });
      const { promise, resolve } = Promise.withResolvers<void>();
      https.listen(Number(server.slice(server.lastIndexOf(':') + 1)), '127.0.0.1', resolve);
      await promise;
    }
  }

  async #handle(server: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const begun = now();
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    const url = new URL(request.url!, 'https://resident');
    const path = url.pathname.split('/').slice(2).map(decodeURIComponent);
    const body = text === '' ? {} : (JSON.parse(text) as JsonObject);
    const name = path.slice(0, 3).join('/');
    const { status = 200, parts } = this.#answer({ server, path, query: url.searchParams, body });
    response.writeHead(status, { 'content-type': 'application/json' });
    for (const part of parts)
      if (!response.write(part)) await new Promise<void>((resolve) => response.once('drain', resolve));
    response.end();
    this.served.push({ name, begun, done: now() });
  }

  #answer(request: Request): Answer {
    const { room } = this.#options;
    const { path, query, server } = request;
    const [kind, , name, first, second] = path;
    if (kind === 'key') return json(this.#keys(server));
    switch (name) {
      case 'version':
        return json({ server: { name: 'resident', version: '1' } });
      case 'make_join':
        return json(this.#template(second!));
      case 'send_join':
        return this.#sendJoin(request, second!);
      case 'event':
        return this.#event(server, first!);
      case 'state':
        return this.#state(query.get('event_id')!, true);
      case 'state_ids':
        return this.#state(query.get('event_id')!, false);
      case 'event_auth':
        return { parts: list(['{"auth_chain":['], room.events.slice(0, room.head), [']}']) };
      case 'backfill':
        return this.#backfill(server, query);
      case 'get_missing_events':
        return json({ events: [] });
      case 'send':
        return json({ pdus: {} });
      case 'user':
        return json({ device_keys: {}, one_time_keys: {}, devices: [], stream_id: 1, user_id: second ?? '' });
      case 'query':
        return json({});
      default:
        return { status: 404, parts: ['{"errcode":"M_UNRECOGNIZED"}'] };
    }
  }

  #keys(server: string): JsonObject {
    const key = this.#options.room.keys.get(server)!;
    return signJson(
      {
        server_name: server,
        valid_until_ts: Date.now() + 24 * HOUR,
        verify_keys: { [key.keyId]: { key: key.publicKeyBase64 } },
        old_verify_keys: {},
      },
      server,
      key,
    );
  }

  #template(userId: string): JsonObject {
    const { roomId, events, head } = this.#options.room;
    const [create, , levels, rules] = events.slice(0, head);
    const last = events.at(-1)!;
    return {
      room_version: ROOM_VERSION.id,
      event: {
        room_id: roomId,
        sender: userId,
        type: 'm.room.member',
        state_key: userId,
        content: { membership: 'join' },
        prev_events: [last.id],
        auth_events: [create!.id, levels!.id, rules!.id],
        depth: events.length + 1,
        origin_server_ts: Date.now(),
      },
    };
  }

  #sendJoin({ server, query, body }: Request, eventId: string): Answer {
    const { room, full } = this.#options;
    const event = makeEvent(body as Pdu, ROOM_VERSION);
    const text = JSON.stringify(event.pdu);
    this.#joins.set(eventId, { id: eventId, json: text });
    const omit = !full && query.get('omit_members') === 'true';
    const states = room.events.slice(0, omit ? room.head : undefined);
    // The creator's membership is in the auth chain; nobody else's authorises anything.
    const state = omit ? states.filter((_event, i) => i !== 1) : states;
    const servers = omit ? `,"servers_in_room":${JSON.stringify([...room.keys.keys()])}` : '';
    const head = `{"origin":"${server}","members_omitted":${omit}${servers},"event":${text},"state":[`;
    return {
      parts: list(list([head], state, ['],"auth_chain":[']), room.events.slice(0, omit ? 2 : room.head), [
        ']}',
      ]),
    };
  }

  #state(eventId: string, whole: boolean): Answer {
    const { events, head } = this.#options.room;
    const at = this.#joins.has(eventId) ? events.length : events.findIndex(({ id }) => id === eventId);
    if (at < 0) return { status: 404, parts: ['{"errcode":"M_NOT_FOUND"}'] };
    const state = events.slice(0, at);
    const chain = events.slice(0, Math.min(head, at));
    if (whole) return { parts: list(list(['{"auth_chain":['], chain, ['],"pdus":[']), state, [']}']) };
    const ids = (of: readonly SimulatedEvent[]) => of.map(({ id }) => id);
    return json({ auth_chain_ids: ids(chain), pdu_ids: ids(state) });
  }

  #event(server: string, eventId: string): Answer {
    const event = this.#byId.get(eventId) ?? this.#joins.get(eventId);
    if (!event) return { status: 404, parts: ['{"errcode":"M_NOT_FOUND"}'] };
    return { parts: [`{"origin":"${server}","origin_server_ts":0,"pdus":[${event.json}]}`] };
  }

  #backfill(server: string, query: URLSearchParams): Answer {
    const { events } = this.#options.room;
    const from = query.getAll('v').map((id) => events.findIndex((event) => event.id === id));
    const end = Math.max(...from) + 1;
    const some = events.slice(Math.max(0, end - Number(query.get('limit') ?? 10)), end).reverse();
    return { parts: list([`{"origin":"${server}","origin_server_ts":0,"pdus":[`], some, [']}']) };
  }
}

function now(): number {
  return performance.timeOrigin + performance.now();
}

function json(object: object): Answer {
  return { parts: [JSON.stringify(object)] };
}

const PIECE = 500;

function* list(
  before: Iterable<string>,
  events: readonly SimulatedEvent[],
  after: Iterable<string>,
): Generator<string> {
  yield* before;
  for (let i = 0; i < events.length; i += PIECE)
    yield (i > 0 ? ',' : '') +
      events
        .slice(i, i + PIECE)
        .map((event) => event.json)
        .join(',');
  yield* after;
}
