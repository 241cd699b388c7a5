import { invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { parseRoomAlias } from '@trellis/protocol/identifiers.ts';
import type { Database } from '@trellis/storage/database.ts';
import { announce } from './announce.ts';
import type { Rooms } from './rooms.ts';

export interface AliasTarget {
  readonly roomId: string;
  readonly servers: string[];
}

/** Resolves aliases of other servers. Implemented by federation. */
export type RemoteAliases = (alias: string, server: string) => Promise<AliasTarget | undefined>;

/** Asks an application service for an alias of its own that leads nowhere yet; whether it made one. */
export type MissingAlias = (alias: string) => Promise<boolean>;

/** Room aliases of this server, and which of its rooms are published in the directory. */
export class Aliases {
  readonly #db: Database;
  readonly #rooms: Rooms;
  readonly #remote: RemoteAliases;
  #missing: MissingAlias = async () => false;
  readonly #changed: Array<(roomId: string) => void> = [];

  constructor(db: Database, rooms: Rooms, remote: RemoteAliases) {
    this.#db = db;
    this.#rooms = rooms;
    this.#remote = remote;
    rooms.parts.cluster.onAnnounce('aliases', (roomId: string) => {
      for (const listener of this.#changed) listener(roomId);
    });
  }

  /** Called before a local alias is said to lead nowhere. */
  onMissing(ask: MissingAlias): void {
    this.#missing = ask;
  }

  /** Called, in every process, when a room has got or lost a local alias. */
  onChanged(listener: (roomId: string) => void): void {
    this.#changed.push(listener);
  }

  /** The full alias for a local part, when it is well-formed and free: M_INVALID_PARAM, M_ROOM_IN_USE. */
  async free(localpart: string): Promise<string> {
    const alias = `#${localpart}:${this.#rooms.parts.serverName}`;
    if (localpart === '' || localpart.includes(':') || !parseRoomAlias(alias))
      throw invalidParam('That is no valid room alias');
    if (await this.#local(alias)) throw new MatrixError(400, 'M_ROOM_IN_USE', 'That room alias is taken');
    return alias;
  }

  /** Where an alias leads, asking its server when it is another's. M_NOT_FOUND when it leads nowhere. */
  async resolve(alias: string): Promise<AliasTarget> {
    const parsed = parseRoomAlias(alias);
    if (!parsed) throw invalidParam('That is no valid room alias');
    if (parsed.serverName !== this.#rooms.parts.serverName) {
      const target = await this.#remote(alias, parsed.serverName);
      if (!target) throw notFound('No room has that alias');
      return target;
    }
    const row =
      (await this.#local(alias)) ?? ((await this.#missing(alias)) ? await this.#local(alias) : undefined);
    if (!row) throw notFound('No room has that alias');
    const room = await this.#rooms.get(row.roomId);
    const servers = room?.isResident ? [...room.servers.keys()] : row.servers;
    // Ours first: whoever asks us gets in through us the fastest.
    const own = this.#rooms.parts.serverName;
    return { roomId: row.roomId, servers: [...new Set([own, ...servers])].slice(0, 100) };
  }

  /** @throws M_UNKNOWN (409) when the alias is taken */
  async set(alias: string, roomId: string, creator: string, servers: readonly string[]): Promise<void> {
    const rows = await this.#db.query(
      `INSERT INTO room_aliases (alias, room_id, creator, servers) VALUES ($1, $2, $3, $4)
       ON CONFLICT (alias) DO NOTHING RETURNING alias`,
      [alias, roomId, creator, servers],
    );
    if (rows.length === 0) throw new MatrixError(409, 'M_UNKNOWN', `The alias ${alias} is taken`);
    await this.#announce(roomId);
  }

  async creator(alias: string): Promise<{ roomId: string; creator: string } | undefined> {
    const [row] = await this.#db.query<{ roomId: string; creator: string }>(
      'SELECT room_id AS "roomId", creator FROM room_aliases WHERE alias = $1',
      [alias],
    );
    return row;
  }

  async remove(alias: string): Promise<void> {
    const sql = 'DELETE FROM room_aliases WHERE alias = $1 RETURNING room_id AS "roomId"';
    for (const { roomId } of await this.#db.query<{ roomId: string }>(sql, [alias]))
      await this.#announce(roomId);
  }

  /** Moves all local aliases of a room to the one that replaces it. */
  async move(fromRoomId: string, toRoomId: string): Promise<void> {
    await this.#db.query('UPDATE room_aliases SET room_id = $2 WHERE room_id = $1', [fromRoomId, toRoomId]);
    await this.#announce(fromRoomId);
    await this.#announce(toRoomId);
  }

  async ofRoom(roomId: string): Promise<string[]> {
    const rows = await this.#db.query<{ alias: string }>(
      'SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias',
      [roomId],
    );
    return rows.map(({ alias }) => alias);
  }

  /** Puts a room into the published directory, or takes it out. */
  async publish(roomId: string, published: boolean): Promise<void> {
    await this.#rooms.exclusive(roomId, async (room) => {
      await this.#db.query('UPDATE rooms SET published = $2 WHERE nid = $1', [room.nid, published]);
      room.published = published;
      await this.#rooms.changed(roomId);
    });
  }

  #announce(roomId: string): Promise<void> {
    return announce(this.#rooms.parts.cluster, 'aliases', roomId);
  }

  async #local(alias: string): Promise<AliasTarget | undefined> {
    const [row] = await this.#db.query<AliasTarget>(
      'SELECT room_id AS "roomId", servers FROM room_aliases WHERE alias = $1',
      [alias],
    );
    return row;
  }
}
