import type { Cluster } from '@trellis/cluster/cluster.ts';
import { tooLarge } from '@trellis/protocol/errors.ts';
import {
  type CompiledRules,
  changesFromJson,
  changesToJson,
  compileRules,
  copyRoomRules,
  NO_CHANGES,
  type PushRuleChanges,
  type Ruleset,
  rulesetOf,
} from '@trellis/protocol/push-rules/index.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { KeyedQueue } from './keyed-queue.ts';
import { lockedWrite } from './locked-write.ts';
import { ReadThroughCache } from './read-through-cache.ts';

/** A user's push rules, ready for use. */
export interface UserRules {
  readonly changes: PushRuleChanges;
  readonly compiled: CompiledRules;
  /** Position of their last change in the stream of account data; 0 when nothing was ever changed. */
  readonly pos: number;
}

export interface PushRulesDeps {
  readonly db: Database;
  readonly stream: Stream<AccountDataChange>;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

export const PUSH_RULES = 'm.push_rules';

const MAX_CACHED = 50_000;
const MAX_RULES_BYTES = 512 * 1024;

/** Push rules of local users: what each changed of the predefined ones (spec: "Push Rules"). */
export class PushRules {
  readonly #db: Database;
  readonly #stream: Stream<AccountDataChange>;
  readonly #cache: ReadThroughCache<UserRules>;
  readonly #queue = new KeyedQueue();
  readonly #shared: boolean;
  /** Shared by all users who changed nothing, which is nearly everyone. */
  readonly #unchanged: UserRules = { changes: NO_CHANGES, compiled: compileRules(undefined), pos: 0 };

  constructor({ db, stream, cluster }: PushRulesDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#cache = new ReadThroughCache(MAX_CACHED, (userId) => this.#read(this.#db, userId), {
      cluster,
      name: 'push-rules',
    });
    this.#shared = cluster?.shared ?? false;
    stream.subscribe((_pos, { userId, type }) => {
      if (type === PUSH_RULES) this.#cache.drop(userId);
    });
  }

  /** At once when they are in memory. */
  of(userId: string): UserRules | Promise<UserRules> {
    return this.#cache.get(userId) as UserRules | Promise<UserRules>;
  }

  /** For those who evaluate events. */
  compiled(userId: string): CompiledRules | Promise<CompiledRules> {
    const rules = this.of(userId);
    return rules instanceof Promise ? rules.then(({ compiled }) => compiled) : rules.compiled;
  }

  async ruleset(userId: string): Promise<Ruleset> {
    return rulesetOf(userId, (await this.of(userId)).changes);
  }

  /** Changes the rules and tells the user's clients. What `change` throws is thrown on, and nothing is changed. */
  async change(userId: string, change: (changes: PushRuleChanges) => PushRuleChanges): Promise<void> {
    const announced: AccountDataChange = { userId, roomId: null, type: PUSH_RULES };
    await this.#queue.run(userId, async () => {
      if (this.#shared)
        return lockedWrite(this.#db, this.#stream, `${PUSH_RULES} ${userId}`, async (tx, announce) => {
          const json = changed((await this.#read(tx, userId)).changes, change);
          if (json !== undefined) await store(tx, userId, json, await announce(announced));
        });
      const json = changed((await this.of(userId)).changes, change);
      if (json !== undefined)
        await this.#stream.write([announced], async (pos) => {
          await store(this.#db, userId, json, pos);
          this.#cache.drop(userId);
        });
    });
  }

  /** A room took the place of another: rules about the old one come to hold for the new one too. */
  copyRoomRules(userId: string, oldRoom: string, newRoom: string): Promise<void> {
    return this.change(userId, (changes) => copyRoomRules(changes, oldRoom, newRoom));
  }

  /** For accounts that go. */
  async erase(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM push_rules WHERE user_id = $1', [userId]);
    await this.#cache.forget(userId);
  }

  async #read(db: Queryable, userId: string): Promise<UserRules> {
    const [row] = await db.query<{ changes: string; pos: number }>(
      { name: 'push-rules', text: 'SELECT changes, pos FROM push_rules WHERE user_id = $1' },
      [userId],
    );
    if (!row) return this.#unchanged;
    const changes = changesFromJson(row.changes);
    return { changes, compiled: compileRules(changes), pos: row.pos };
  }
}

/** The JSON of the changed rules; `undefined` when they stay. */
function changed(
  before: PushRuleChanges,
  change: (changes: PushRuleChanges) => PushRuleChanges,
): string | undefined {
  const after = change(before);
  if (after === before) return undefined;
  const json = changesToJson(after);
  if (json.length > MAX_RULES_BYTES) throw tooLarge('The push rules are too many');
  return json;
}

async function store(db: Queryable, userId: string, json: string, pos: number): Promise<void> {
  await db.query(
    `INSERT INTO push_rules (user_id, changes, pos) VALUES ($1, $2, $3)
     ON CONFLICT (user_id) DO UPDATE SET changes = EXCLUDED.changes, pos = EXCLUDED.pos`,
    [userId, json, pos],
  );
}
