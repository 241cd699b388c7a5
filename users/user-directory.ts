import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Database } from '@trellis/storage/database.ts';
import { beginsOrAlmost, typoVariants } from './directory-typos.ts';
import { searchWords, wordsOf } from './directory-words.ts';

/** Whom a user may see. Implemented by `rooms/`. */
export interface UserVisibility {
  /** Those of `userIds` who share a room with the requester, or are in a room that is public or world-readable. */
  visibleTo(requesterId: string, userIds: readonly string[]): Promise<ReadonlySet<string>>;
}

export interface DirectoryEntry {
  readonly userId: string;
  readonly displayName: string | undefined;
  readonly avatarUrl: string | undefined;
}

export interface SearchResult {
  readonly user_id: string;
  readonly display_name?: string;
  readonly avatar_url?: string;
}

export interface UserDirectoryDeps {
  readonly db: Database;
  readonly serverName: string;
  readonly visibility: UserVisibility;
  /** Everyone finds all users that this server knows of. */
  readonly searchAllUsers?: boolean;
}

/** Users looked at for one search; a search that more of them match is told to be limited. */
const MAX_CANDIDATES = 2000;
/** Users looked at for what may have been mistyped. */
const MAX_SIMILAR = 500;
const VISIBILITY_BATCH = 100;
const MAX_NAME = 256;
/** Nobody can talk to who is locked out. */
const SHOWN = 'NOT EXISTS (SELECT FROM accounts a WHERE a.user_id = d.user_id AND a.locked)';
const MAX_URL = 1000;

interface Candidate {
  readonly userId: string;
  readonly displayName: string | null;
  readonly avatarUrl: string | null;
}

/**
 * Local users and those of other servers that were seen in rooms, found by the beginnings of words; if these find
 * nobody, by what was probably meant.
 */
export class UserDirectory {
  readonly #db: Database;
  readonly #serverName: string;
  readonly #visibility: UserVisibility;
  readonly #searchAllUsers: boolean;
  /** What was last written of a user: most membership events bring nothing new. */
  readonly #noted = new RecentlyUsed<string, string>(20_000);

  constructor({ db, serverName, visibility, searchAllUsers = false }: UserDirectoryDeps) {
    this.#db = db;
    this.#serverName = serverName;
    this.#visibility = visibility;
    this.#searchAllUsers = searchAllUsers;
  }

  /**
   * Enters another server's user as seen in a room. Local users are passed over: theirs is what their profile says,
   * not what one room calls them.
   */
  async noteProfile(userId: string, displayName: unknown, avatarUrl: unknown): Promise<void> {
    await this.noteProfiles([{ userId, displayName, avatarUrl }]);
  }

  async noteProfiles(
    seen: ReadonlyArray<{ userId: string; displayName: unknown; avatarUrl: unknown }>,
  ): Promise<void> {
    const entries = new Map<string, DirectoryEntry>();
    for (const { userId, displayName, avatarUrl } of seen) {
      const serverName = parseUserId(userId)?.serverName;
      if (serverName === undefined || serverName === this.#serverName) continue;
      const entry = { userId, displayName: text(displayName, MAX_NAME), avatarUrl: text(avatarUrl, MAX_URL) };
      if (this.#noted.get(userId) !== JSON.stringify(entry)) entries.set(userId, entry);
    }
    await this.#write([...entries.values()]);
  }

  /** Another process enters the user: what this one wrote last says nothing any more. */
  noteElsewhere(userId: string): void {
    this.#noted.delete(userId);
  }

  /** Enters a local user as their profile says. */
  async setLocal(
    userId: string,
    displayName: string | undefined,
    avatarUrl: string | undefined,
  ): Promise<void> {
    const entry = { userId, displayName: text(displayName, MAX_NAME), avatarUrl: text(avatarUrl, MAX_URL) };
    await this.#write([entry]);
  }

  async remove(userId: string): Promise<void> {
    this.#noted.delete(userId);
    await this.#db.transaction(async (tx) => {
      for (const table of ['user_directory_words', 'user_directory'])
        await tx.query(`DELETE FROM ${table} WHERE user_id = $1`, [userId]);
    });
  }

  async search(
    requesterId: string,
    term: string,
    limit: number,
  ): Promise<{ results: SearchResult[]; limited: boolean }> {
    const words = searchWords(term);
    if (words.length === 0) return { results: [], limited: false };
    const candidates = await this.#candidates(requesterId, words);
    const found = await this.#firstVisible(requesterId, candidates, limit + 1);
    if (found.length === 0) {
      const similar = await this.#similar(requesterId, words);
      found.push(...(await this.#firstVisible(requesterId, similar, limit + 1)));
    }
    const limited = found.length > limit || candidates.length >= MAX_CANDIDATES;
    return { results: found.slice(0, limit).map(asResult), limited };
  }

  async #firstVisible(
    requesterId: string,
    candidates: readonly Candidate[],
    count: number,
  ): Promise<Candidate[]> {
    const found: Candidate[] = [];
    for (let i = 0; i < candidates.length && found.length < count; i += VISIBILITY_BATCH) {
      const batch = candidates.slice(i, i + VISIBILITY_BATCH);
      found.push(...(this.#searchAllUsers ? batch : await this.#visible(requesterId, batch)));
    }
    return found;
  }

  async #visible(requesterId: string, batch: readonly Candidate[]): Promise<Candidate[]> {
    const userIds = batch.map(({ userId }) => userId);
    const visible = await this.#visibility.visibleTo(requesterId, userIds);
    return batch.filter(({ userId }) => visible.has(userId));
  }

  /** Who has a word beginning with each of `words`; those with more words just so come first. */
  async #candidates(requesterId: string, words: readonly string[]): Promise<Candidate[]> {
    const [longest, ...others] = [...words].sort((a, b) => b.length - a.length) as [string, ...string[]];
    const matches = others.map(
      (_, i) => `AND EXISTS (SELECT FROM user_directory_words w WHERE w.user_id = d.user_id
        AND w.word >= $${i + 6} AND w.word < $${i + 6} || $3)`,
    );
    return this.#db.query<Candidate>(
      `SELECT d.user_id AS "userId", d.display_name AS "displayName", d.avatar_url AS "avatarUrl"
       FROM (SELECT DISTINCT user_id FROM (
               SELECT user_id FROM user_directory_words
               WHERE word >= $2 AND word < $2 || $3 ORDER BY word LIMIT $5) AS first) AS c
         JOIN user_directory d ON d.user_id = c.user_id
       WHERE d.user_id <> $1 AND ${SHOWN} ${matches.join(' ')}
       ORDER BY (SELECT count(*) FROM user_directory_words w WHERE w.user_id = d.user_id AND w.word = ANY($4)) DESC,
         d.local DESC, d.display_name IS NULL, d.avatar_url IS NULL, d.user_id`,
      [this.#leftOut(requesterId), longest, '\u{10FFFF}', words, MAX_CANDIDATES, ...others],
    );
  }

  /** Who searches among all users knows their own id; else they are one of those in the rooms open to all. */
  #leftOut(requesterId: string): string {
    return this.#searchAllUsers ? requesterId : '';
  }

  /** Who has words that differ from all of `words` by typing errors at most. */
  async #similar(requesterId: string, words: readonly string[]): Promise<Candidate[]> {
    const variants = words.map(typoVariants).filter((some) => some.length > 0);
    if (variants.length === 0) return [];
    const matches = variants.map((_, i) => `AND s.typos && $${i + 3}::text[]`);
    const candidates = await this.#db.query<Candidate>(
      `SELECT d.user_id AS "userId", d.display_name AS "displayName", d.avatar_url AS "avatarUrl"
       FROM (SELECT * FROM user_directory s WHERE s.user_id <> $1 ${matches.join(' ')} LIMIT $2) AS d
       WHERE ${SHOWN} ORDER BY d.local DESC, d.user_id`,
      [this.#leftOut(requesterId), MAX_SIMILAR, ...variants],
    );
    return candidates.filter(({ userId, displayName }) => {
      const own = wordsOf(userId, displayName ?? undefined);
      return words.every((typed) => own.some((word) => beginsOrAlmost(typed, word)));
    });
  }

  async #write(entries: readonly DirectoryEntry[]): Promise<void> {
    if (entries.length === 0) return;
    // In one order everywhere, so that two writers never wait for each other.
    const sorted = [...entries].sort((a, b) => (a.userId < b.userId ? -1 : 1));
    const ids = sorted.map(({ userId }) => userId);
    const words = sorted.map(({ userId, displayName }) => wordsOf(userId, displayName));
    await this.#db.transaction(async (tx) => {
      const written = await tx.query<{ userId: string; isNew: boolean }>(
        // Variants are letters and digits; an array of arrays of different lengths can't be passed.
        `INSERT INTO user_directory (user_id, display_name, avatar_url, local, typos)
         SELECT user_id, display_name, avatar_url, local, string_to_array(typos, ' ')
         FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[])
           AS u(user_id, display_name, avatar_url, local, typos)
         ON CONFLICT (user_id) DO UPDATE SET display_name = excluded.display_name, avatar_url = excluded.avatar_url,
           typos = excluded.typos
         RETURNING user_id AS "userId", xmax = 0 AS "isNew"`,
        [
          ids,
          sorted.map(({ displayName }) => displayName ?? null),
          sorted.map(({ avatarUrl }) => avatarUrl ?? null),
          sorted.map(({ userId }) => parseUserId(userId)?.serverName === this.#serverName),
          words.map((own) => [...new Set(own.flatMap(typoVariants))].join(' ')),
        ],
      );
      // Whoever is new has nothing that were to be replaced.
      const known = written.filter(({ isNew }) => !isNew).map(({ userId }) => userId);
      if (known.length > 0)
        await tx.query('DELETE FROM user_directory_words WHERE user_id = ANY($1)', [known]);
      await tx.query(
        `INSERT INTO user_directory_words (word, user_id) SELECT * FROM unnest($1::text[], $2::text[])
         ON CONFLICT DO NOTHING`,
        [words.flat(), sorted.flatMap(({ userId }, i) => words[i]!.map(() => userId))],
      );
    });
    for (const entry of sorted) this.#noted.set(entry.userId, JSON.stringify(entry));
  }
}

function asResult({ userId, displayName, avatarUrl }: Candidate): SearchResult {
  return {
    user_id: userId,
    ...(displayName !== null && { display_name: displayName }),
    ...(avatarUrl !== null && { avatar_url: avatarUrl }),
  };
}

/** Others' profiles hold anything; PostgreSQL's text holds no NUL. */
function text(value: unknown, max: number): string | undefined {
  if (typeof value !== 'string' || value === '') return undefined;
  return value.slice(0, max).replaceAll('\0', '').toWellFormed();
}
