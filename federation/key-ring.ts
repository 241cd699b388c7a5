import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { signedText, signingServers } from '@trellis/protocol/make-event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { signableText } from '@trellis/protocol/signing.ts';
import type { KeyFetcher } from './key-fetcher.ts';
import { type ServerKey, signaturesOf } from './key-response.ts';
import type { KeyStore } from './key-store.ts';
import { type Claim, Signatures } from './signatures.ts';

/** A signature that is missing, by a key that is not valid, or wrong. */
export class SignatureError extends Error {
  override readonly name = 'SignatureError';
}

/** One of this server's own keys: the one it signs with, or one that it used to. */
export interface OwnKey {
  keyId: string;
  /** In unpadded Base64. */
  publicKey: string;
  /** When it was retired. */
  expiredTs?: number;
}

/** When a key must have been valid. */
interface KeyNeed {
  server: string;
  keyId: string;
  /** `undefined` in room versions that do not look at validity. */
  validAt: number | undefined;
  /** Requests are signed by keys in use, never by old ones. */
  inUse: boolean;
}

const FETCHES_AT_A_TIME = 32;
/** Signatures of one server looked at on one event. */
const MAX_SIGNATURES = 10;

/** Verifies signatures of other servers, finding their keys where needed. */
export class KeyRing {
  readonly #serverName: string;
  readonly #own: Map<string, ServerKey>;
  readonly #store: KeyStore;
  readonly #fetcher: KeyFetcher;
  readonly #distrusted: ReadonlySet<string>;
  readonly #clock: () => number;
  readonly #signatures = new Signatures();
  /** Texts whose signature was right lately: transactions are sent again, events come by several ways. */
  readonly #verified = new RecentlyUsed<string, true>(20_000);

  constructor(options: {
    serverName: string;
    ownKeys: readonly OwnKey[];
    store: KeyStore;
    fetcher: KeyFetcher;
    /** Public keys, in unpadded Base64, that are known to be in the wrong hands: nothing is verified with them. */
    distrusted?: readonly string[];
    clock?: () => number;
  }) {
    this.#distrusted = new Set(options.distrusted?.map((key) => key.replace(/=+$/, '')));
    this.#serverName = options.serverName;
    this.#own = new Map(
      options.ownKeys.map((key) => [
        key.keyId,
        {
          keyId: key.keyId,
          publicKey: key.publicKey,
          validUntil: key.expiredTs ?? Number.MAX_SAFE_INTEGER,
          expired: key.expiredTs !== undefined,
        },
      ]),
    );
    this.#store = options.store;
    this.#fetcher = options.fetcher;
    this.#clock = options.clock ?? Date.now;
  }

  /**
   * Checks the signatures that each event needs (of its sender's server, and of others by room version and kind).
   *
   * @returns for each event id an error, or `undefined` when all its signatures are right
   */
  async verifyEventSignatures(events: readonly RoomEvent[]): Promise<Map<string, Error | undefined>> {
    const needs = events.map((event) => neededSignatures(event));
    const keys = await this.#keys(
      needs.flatMap((of) => of.flatMap(({ candidates }) => candidates.map(({ need }) => need))),
    );
    const right = await this.#verifyClaims(
      events.flatMap((event, i) => this.#claims(event, needs[i]!, keys)),
    );
    return new Map(
      events.map((event, i) => [
        event.eventId,
        this.#judge(event, needs[i]!, keys, right.get(event) ?? new Set()),
      ]),
    );
  }

  /**
   * Events of the server are about to come: its keys are fetched meanwhile, where none that is in use is known.
   *
   * @param talks resolves when the server is there: nothing is asked of it before that
   */
  async expect(server: string, talks?: Promise<unknown>): Promise<void> {
    const now = this.#clock();
    const known = (await this.#store.get([server])).get(server)?.values() ?? [];
    for (const { expired, validUntil } of known) if (!expired && validUntil > now) return;
    await talks;
    await this.#fetcher.fetchDirect(server);
  }

  /** Checks that `server` has signed a JSON object with a key that is in use. */
  async verifyJson(server: string, object: JsonObject): Promise<void> {
    const text = signableText(object);
    const candidates = signaturesOf(object, server).slice(0, MAX_SIGNATURES);
    const needs = candidates.map(([keyId]) => ({ server, keyId, validAt: this.#clock(), inUse: true }));
    const keys = await this.#keys(needs);
    const claims = candidates.flatMap(([, signature], index): Claim[] => {
      const key = this.#acceptable(keys, needs[index]!);
      return key ? [[key.publicKey, text, signature]] : [];
    });
    if ((await this.#signatures.verify(claims)).includes(true)) return;
    throw new SignatureError(`no valid signature by ${server}`);
  }

  /** Checks an X-Matrix signature. */
  async verifyRequest(origin: string, keyId: string, signature: string, text: string): Promise<void> {
    const need: KeyNeed = { server: origin, keyId, validAt: this.#clock(), inUse: true };
    const key = this.#acceptable(await this.#keys([need], true), need);
    if (!key)
      throw new MatrixError(401, 'M_UNAUTHORIZED', `No valid key ${keyId} of ${origin} could be found`);
    const [isRight] = await this.#signatures.verify([[key.publicKey, text, signature]]);
    if (!isRight)
      throw new MatrixError(401, 'M_UNAUTHORIZED', `The request's signature by ${origin} is wrong`);
  }

  /** What is to be verified of an event, beside what was lately. */
  #claims(event: RoomEvent, needed: readonly NeededSignature[], keys: Keys): MarkedClaim[] {
    const claims: MarkedClaim[] = [];
    let text: string | undefined;
    for (const { candidates } of needed)
      for (const candidate of candidates) {
        const key = this.#acceptable(keys, candidate.need);
        if (!key) continue;
        const mark = markOf(event, candidate, key);
        // Event ids of room versions 1 and 2 do not stand for the content.
        if (event.version.eventIds !== 'server' && this.#verified.has(mark)) continue;
        text ??= signedText(event);
        claims.push({ event, mark, claim: [key.publicKey, text, candidate.signature] });
      }
    return claims;
  }

  /** @returns the marks of those that are true */
  async #verifyClaims(claims: readonly MarkedClaim[]): Promise<Map<RoomEvent, Set<string>>> {
    const verdicts = await this.#signatures.verify(claims.map(({ claim }) => claim));
    const right = new Map<RoomEvent, Set<string>>();
    for (const [i, { event, mark }] of claims.entries()) {
      if (!verdicts[i]) continue;
      const marks = right.get(event);
      if (marks) marks.add(mark);
      else right.set(event, new Set([mark]));
      this.#verified.set(mark, true);
    }
    return right;
  }

  #judge(
    event: RoomEvent,
    needed: readonly NeededSignature[],
    keys: Keys,
    marks: ReadonlySet<string>,
  ): Error | undefined {
    const { eventId, version } = event;
    for (const { server, candidates } of needed) {
      if (candidates.length === 0) return new SignatureError(`${eventId} is not signed by ${server}`);
      const usable = candidates.flatMap((candidate) => {
        const key = this.#acceptable(keys, candidate.need);
        return key ? markOf(event, candidate, key) : [];
      });
      if (usable.length === 0)
        return new SignatureError(`${eventId} is signed by no key of ${server} that is valid`);
      const isRight = (mark: string) =>
        marks.has(mark) || (version.eventIds !== 'server' && this.#verified.has(mark));
      if (!usable.some(isRight))
        return new SignatureError(`the signature of ${server} on ${eventId} is wrong`);
    }
    return undefined;
  }

  #acceptable(keys: Keys, need: KeyNeed): ServerKey | undefined {
    const key = keys.get(need.server)?.get(need.keyId);
    if (!key || this.#distrusted.has(key.publicKey)) return undefined;
    if (need.inUse && key.expired) return undefined;
    return need.validAt !== undefined && key.validUntil < need.validAt ? undefined : key;
  }

  /** The keys of all servers in `needs`, asking for those that are not there or not valid long enough. */
  async #keys(needs: readonly KeyNeed[], isHere = false): Promise<Keys> {
    const foreign = new Set(needs.map(({ server }) => server));
    const hasOwn = foreign.delete(this.#serverName);
    let keys: Keys = foreign.size > 0 ? await this.#store.get(foreign) : new Map();
    const lacking = new Map<string, Map<string, number>>();
    for (const need of needs) {
      if (need.server === this.#serverName || this.#acceptable(keys, need)) continue;
      const ids = lacking.get(need.server) ?? new Map<string, number>();
      lacking.set(need.server, ids);
      ids.set(need.keyId, Math.max(ids.get(need.keyId) ?? 0, need.validAt ?? 0));
    }
    if (lacking.size > 0) {
      await this.#fetcher.fetch(lacking, FETCHES_AT_A_TIME, isHere);
      keys = await this.#store.get(foreign);
    }
    if (hasOwn) keys = new Map([...keys, [this.#serverName, this.#own]]);
    return keys;
  }
}

type Keys = ReadonlyMap<string, ReadonlyMap<string, ServerKey>>;

interface Candidate {
  need: KeyNeed;
  signature: string;
}

interface NeededSignature {
  server: string;
  candidates: Candidate[];
}

/** A claim, and what stands for it among those that are known to be true. */
interface MarkedClaim {
  event: RoomEvent;
  mark: string;
  claim: Claim;
}

function markOf({ eventId }: RoomEvent, { need, signature }: Candidate, { publicKey }: ServerKey): string {
  return `${need.server} ${need.keyId} ${publicKey} ${signature} ${eventId}`;
}

function neededSignatures(event: RoomEvent): NeededSignature[] {
  const validAt = event.version.enforceKeyValidity ? event.originServerTs : undefined;
  return [...signingServers(event)].map((server) => ({
    server,
    candidates: signaturesOf(event.pdu, server)
      .slice(0, MAX_SIGNATURES)
      .map(([keyId, signature]) => ({ need: { server, keyId, validAt, inUse: false }, signature })),
  }));
}
