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
import type { Queryable } from '@trellis/storage/database.ts';
import type { AccountDataChange, Stream } from '@trellis/storage/streams.ts';
import { KeyedQueue } from './keyed-queue.ts';
import { ReadThroughCache } from './read-through-cache.ts';

/** A user's push rules, ready for use. */
export interface UserRules {
  readonly changes: PushRuleChanges;
  readonly compiled: CompiledRules;
  /** Position of their last change in the stream of account data; 0 when nothing was ever changed. */
  readonly pos: number;
}

export interface PushRulesDeps {
  readonly db: Queryable;
  readonly stream: Stream<AccountDataChange>;
}

export const PUSH_RULES = 'm.push_rules';

const MAX_CACHED = 50_000;
const MAX_RULES_BYTES = 512 * 1024;

/** Push rules of local users: what each changed of the predefined ones (spec: "Push Rules"). */
export class PushRules {
  readonly #db: Queryable;
  readonly #stream: Stream<AccountDataChange>;
  readonly #cache: ReadThroughCache<UserRules>;
  readonly #queue = new KeyedQueue();
  /** Shared by all users who changed nothing, which is nearly everyone. */
  readonly #unchanged: UserRules = { changes: NO_CHANGES, compiled: compileRules(undefined), pos: 0 };

  constructor({ db, stream }: PushRulesDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#cache = new ReadThroughCache(MAX_CACHED, (userId) => this.#read(userId));
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
    await this.#queue.run(userId, async () => {
      const before = (await this.of(userId)).changes;
      const after = change(before);
      if (after === before) return;
      const json = changesToJson(after);
      if (json.length > MAX_RULES_BYTES) throw tooLarge('The push rules are too many');
      await this.#stream.write([{ userId, roomId: null, type: PUSH_RULES }], async (pos) => {
        await this.#db.query(
          `INSERT INTO push_rules (user_id, changes, pos) VALUES ($1, $2, $3)
           ON CONFLICT (user_id) DO UPDATE SET changes = EXCLUDED.changes, pos = EXCLUDED.pos`,
          [userId, json, pos],
        );
        this.#cache.forget(userId);
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
    this.#cache.forget(userId);
  }

  async #read(userId: string): Promise<UserRules> {
    const [row] = await this.#db.query<{ changes: string; pos: number }>(
      { name: 'push-rules', text: 'SELECT changes, pos FROM push_rules WHERE user_id = $1' },
      [userId],
    );
    if (!row) return this.#unchanged;
    const changes = changesFromJson(row.changes);
    return { changes, compiled: compileRules(changes), pos: row.pos };
  }
}
