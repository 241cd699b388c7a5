import { createReadStream, existsSync } from 'node:fs';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import type { JsonObject, Pdu } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey } from '@trellis/protocol/signing.ts';

export interface RoomSize {
  readonly members: number;
  /** Servers that the members are on, each with a key and a port of its own. */
  readonly servers: number;
  /** Of the first server; the others have those that follow. */
  readonly port: number;
}

export interface SimulatedEvent {
  readonly id: string;
  readonly json: string;
}

/** A room of room version 11 in which nothing has happened but that it was made and that everybody joined. */
export interface SimulatedRoom {
  readonly roomId: string;
  readonly keys: ReadonlyMap<string, SigningKey>;
  /** In the order in which they were sent. */
  readonly events: readonly SimulatedEvent[];
  /** Of these, how many come before the members: the state that is no membership, and the creator's join. */
  readonly head: number;
}

export const ROOM_VERSION = roomVersion('11')!;

/** The room from a file of an earlier run, or a new one. Making one takes about a second for 10,000 members. */
export async function simulatedRoom(size: RoomSize): Promise<SimulatedRoom> {
  const folder = join(tmpdir(), 'trellis-bench-resident');
  const file = join(folder, `${size.members}-${size.servers}-${size.port}.jsonl`);
  if (!existsSync(file)) {
    await mkdir(folder, { recursive: true });
    const lines = makeRoom(size);
    await writeFile(`${file}.new`, `${lines.join('\n')}\n`);
    await rename(`${file}.new`, file);
  }
  return readRoom(file);
}

interface Head {
  readonly roomId: string;
  readonly head: number;
  readonly keys: ReadonlyArray<[server: string, keyId: string, seed: string]>;
}

async function readRoom(file: string): Promise<SimulatedRoom> {
  const events: SimulatedEvent[] = [];
  let first: Head | undefined;
  for await (const line of createInterface({ input: createReadStream(file) })) {
    if (!first) first = JSON.parse(line) as Head;
    else {
      const end = line.indexOf(' ');
      events.push({ id: line.slice(0, end), json: line.slice(end + 1) });
    }
  }
  const { roomId, head, keys } = first!;
  return {
    roomId,
    head,
    events,
    keys: new Map(keys.map(([server, keyId, seed]) => [server, SigningKey.fromSeed(keyId, seed)])),
  };
}

function makeRoom({ members, servers, port }: RoomSize): string[] {
  const names = Array.from({ length: servers }, (_, i) => `127.0.0.1:${port + i}`);
  const keys = new Map(names.map((name) => [name, SigningKey.generate()]));
  const roomId = `!large${members}:${names[0]}`;
  const creator = `@creator:${names[0]}`;
  const lines: string[] = [];
  const ids: string[] = [];
  const begun = Date.now() - members;
  const add = (
    server: string,
    sender: string,
    type: string,
    stateKey: string,
    content: JsonObject,
    auth: string[],
  ) => {
    const event = buildEvent(
      {
        room_id: roomId,
        sender,
        type,
        state_key: stateKey,
        content,
        prev_events: ids.slice(-1),
        auth_events: auth,
        depth: ids.length + 1,
        origin_server_ts: begun + ids.length,
      },
      { version: ROOM_VERSION, key: keys.get(server)!, serverName: server },
    );
    ids.push(event.eventId);
    lines.push(`${event.eventId} ${canonicalJson(event.pdu as Pdu)}`);
    return event.eventId;
  };
  const own = (type: string, content: JsonObject, auth: string[]) =>
    add(names[0]!, creator, type, '', content, auth);
  const create = own('m.room.create', { room_version: ROOM_VERSION.id }, []);
  const join = add(names[0]!, creator, 'm.room.member', creator, { membership: 'join' }, [create]);
  const levels = own(
    'm.room.power_levels',
    {
      users: { [creator]: 100 },
      users_default: 0,
      events_default: 0,
      state_default: 50,
      ban: 50,
      kick: 50,
      invite: 0,
    },
    [create, join],
  );
  const rules = own('m.room.join_rules', { join_rule: 'public' }, [create, join, levels]);
  own('m.room.history_visibility', { history_visibility: 'shared' }, [create, join, levels]);
  own('m.room.name', { name: `A room of ${members}` }, [create, join, levels]);
  const head = ids.length;
  for (let i = 1; i < members; i++) {
    const server = names[i % servers]!;
    const user = `@member${i}:${server}`;
    const content = {
      membership: 'join',
      displayname: `Member number ${i}`,
      avatar_url: `mxc://${server}/avatar${i}`,
    };
    add(server, user, 'm.room.member', user, content, [create, levels, rules]);
  }
  const keyList = [...keys].map(([server, key]) => [server, key.keyId, key.seedBase64]);
  return [JSON.stringify({ roomId, head, keys: keyList }), ...lines];
}
