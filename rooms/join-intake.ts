import type { JsonObject, Pdu } from '@trellis/protocol/event.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import { type Come, noteMember } from './partial-state/members.ts';
import { PduIntake } from './pdu-intake.ts';
import type { RemoteEventsParts } from './remote-events.ts';
import { badAnswer, type JoinList } from './remote-handshakes.ts';
import { roomOfVersion } from './unjoined-room.ts';

/** A room with less is taken in as a whole. */
const MAX_HELD = 2000;
const MAX_SERVERS = 100_000;

/** What is left of an answer once it is here. */
export interface TakenIn {
  readonly state: readonly Pdu[];
  readonly authChain: readonly Pdu[];
  /** Set where members are left out of `state`, being stored already: the servers of those who have joined. */
  readonly servers?: readonly string[];
  /** Those members. */
  readonly members?: Come;
}

/**
 * Takes in the room that comes with an answer to a join. A large one is stored as it comes, and its members are left
 * out of what is held in memory, as if the server had been asked to leave them out: the room is entered with the rest,
 * and completed with what is here by then.
 */
export class JoinIntake {
  readonly #parts: Pick<RemoteEventsParts, 'rooms' | 'verifier'>;
  readonly #wanted: {
    readonly server: string;
    readonly roomId: string;
    readonly version: RoomVersion;
  };
  readonly #maxHeld: number;
  readonly #held: Record<JoinList, Pdu[]> = { state: [], auth_chain: [] };
  readonly #servers = new Set<string>();
  readonly #members: Come = new Map();
  #intake: PduIntake | undefined;

  /** @param maxHeld Infinity for an answer that is to be taken in as a whole */
  constructor(
    parts: Pick<RemoteEventsParts, 'rooms' | 'verifier'>,
    wanted: { server: string; roomId: string; version: RoomVersion },
    maxHeld = MAX_HELD,
  ) {
    this.#parts = parts;
    this.#wanted = wanted;
    this.#maxHeld = maxHeld;
  }

  async take(pdus: readonly Pdu[], list: JoinList): Promise<void> {
    if (this.#intake) return this.#store(this.#intake, pdus, list);
    for (const pdu of pdus) this.#held[list].push(pdu);
    if (this.#held.state.length + this.#held.auth_chain.length <= this.#maxHeld) return;
    const held = { state: this.#held.state, auth_chain: this.#held.auth_chain };
    this.#held.state = [];
    this.#held.auth_chain = [];
    this.#intake = await this.#begin([...held.state, ...held.auth_chain]);
    // What authorises others first.
    await this.#store(this.#intake, held.auth_chain, 'auth_chain');
    await this.#store(this.#intake, held.state, 'state');
  }

  async finish(): Promise<TakenIn> {
    const { state, auth_chain: authChain } = this.#held;
    if (!this.#intake) return { state, authChain };
    await this.#intake.finish();
    return { state, authChain, servers: [...this.#servers], members: this.#members };
  }

  async #begin(pdus: readonly Pdu[]): Promise<PduIntake> {
    const { server, roomId, version } = this.#wanted;
    const create = pdus.find(({ type, state_key }) => type === 'm.room.create' && state_key === '');
    // Nothing is stored of a room of another version, as far as that can be seen.
    const { room_version: said = '1' } = (create?.content ?? {}) as { room_version?: unknown };
    if (create && said !== version.id) throw badAnswer(server, 'the room has another version than was said');
    const room = await roomOfVersion(this.#parts.rooms, roomId, version);
    return new PduIntake(this.#parts, room, [], (event) => noteMember(this.#members, event));
  }

  async #store(intake: PduIntake, pdus: readonly Pdu[], list: JoinList): Promise<void> {
    if (list === 'state') for (const pdu of pdus) this.#sort(pdu);
    await intake.take(pdus);
  }

  /** Keeps what the room is entered with: all but others' members, of whom the servers are noted. */
  #sort(pdu: Pdu): void {
    const userId = pdu.type === 'm.room.member' && typeof pdu.state_key === 'string' && pdu.state_key;
    const server = userId && parseUserId(userId)?.serverName;
    if (!server || server === this.#parts.rooms.parts.serverName) this.#held.state.push(pdu);
    else if (
      (pdu.content as JsonObject | undefined)?.membership === 'join' &&
      this.#servers.size < MAX_SERVERS
    )
      this.#servers.add(server);
  }
}
