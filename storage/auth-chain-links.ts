import type { Queryable } from './database.ts';

/** For each chain, up to which of its events. */
export type Reach = Map<number, number>;

interface Link {
  readonly origin: number;
  readonly originSeq: number;
  readonly target: number;
  readonly targetSeq: number;
}

/** All links among the chains that can be reached from some. */
export class AuthChainLinks {
  readonly #byOrigin: Map<number, Link[]>;

  constructor(links: Iterable<Link>) {
    this.#byOrigin = Map.groupBy(links, (link) => link.origin);
    for (const ofChain of this.#byOrigin.values()) ofChain.sort((a, b) => a.originSeq - b.originSeq);
  }

  static async load(db: Queryable, chains: Iterable<number>): Promise<AuthChainLinks> {
    const rows = await db.query<Link>(
      {
        name: 'auth-links',
        text: `WITH RECURSIVE reached (chain) AS (
                 SELECT * FROM unnest($1::bigint[])
                 UNION
                 SELECT l.target_chain FROM reached r JOIN auth_chain_links l ON l.origin_chain = r.chain
               )
               SELECT l.origin_chain AS origin, l.origin_seq AS "originSeq", l.target_chain AS target,
                      l.target_seq AS "targetSeq"
               FROM reached r JOIN auth_chain_links l ON l.origin_chain = r.chain`,
      },
      [[...new Set(chains)]],
    );
    return new AuthChainLinks(rows);
  }

  /** What is reached by links from the given places. They do not count as reached themselves. */
  reachedFrom(start: ReadonlyMap<number, number>): Reach {
    const reached: Reach = new Map();
    // How far each chain has been followed, as an index into its links.
    const followed = new Map<number, number>();
    const queue = [...start.keys()];
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
      const links = this.#byOrigin.get(chain);
      if (!links) continue;
      const end = Math.max(start.get(chain) ?? 0, reached.get(chain) ?? 0);
      let next = followed.get(chain) ?? 0;
      for (; next < links.length && links[next]!.originSeq <= end; next++) {
        const { target, targetSeq } = links[next]!;
        if ((reached.get(target) ?? 0) >= targetSeq) continue;
        reached.set(target, targetSeq);
        queue.push(target);
      }
      followed.set(chain, next);
    }
    return reached;
  }

  /**
   * For each chain, from which of its events on some of the targets can be reached, themselves included.
   *
   * @param within links from beyond this are not looked at
   */
  reaching(targets: ReadonlyMap<number, number>, within: ReadonlyMap<number, number>): Reach {
    const incoming = new Map<number, Link[]>();
    for (const [origin, end] of within)
      for (const link of this.#byOrigin.get(origin) ?? []) {
        if (link.originSeq > end) break;
        const others = incoming.get(link.target);
        if (others) others.push(link);
        else incoming.set(link.target, [link]);
      }
    const from: Reach = new Map(targets);
    const queue = [...from.keys()];
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
      const seq = from.get(chain)!;
      for (const { origin, originSeq, targetSeq } of incoming.get(chain) ?? []) {
        if (targetSeq < seq || originSeq >= (from.get(origin) ?? Number.POSITIVE_INFINITY)) continue;
        from.set(origin, originSeq);
        queue.push(origin);
      }
    }
    return from;
  }
}

/** Both together, the further one of each chain. */
export function furthest(...reaches: ReadonlyArray<ReadonlyMap<number, number>>): Reach {
  const all: Reach = new Map();
  for (const reach of reaches)
    for (const [chain, seq] of reach) if (seq > (all.get(chain) ?? 0)) all.set(chain, seq);
  return all;
}
