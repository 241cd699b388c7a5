import { setTimeout as delay } from 'node:timers/promises';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, RoomEvent } from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { signedText, viewOf } from '@trellis/protocol/make-event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { signatureOf, verifyKey, verifySignature, withSignature } from '@trellis/protocol/signing.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Asks other servers whether they recommend events. Implemented by federation. */
export interface PolicyServers {
  /**
   * @returns signatures: server name to key id to signature
   * Throws a `MatrixError` that a client may see.
   */
  sign(server: string, event: RoomEvent): Promise<JsonObject>;
}

/** A room's policy server, as its state says. */
interface Policy {
  readonly via: string;
  /** In Base64. */
  readonly publicKey: string;
}

const KEY_ID = 'ed25519:policy_server';
/** A server that does not answer is not asked at every event; each process finds that out for itself. In milliseconds. */
const REST = 10_000;
/** For so long an event of others waits when the policy server is busy, once. In milliseconds. */
const MAX_WAIT = 5_000;

/**
 * Policy servers (spec: server-server API, "Policy Servers"): where a room's state names one that is in the room, it
 * has to sign every event but the one that names it.
 */
export class RoomPolicies {
  #servers: PolicyServers | undefined;
  readonly #resting = new RecentlyUsed<string, MatrixError>(1000, { ttl: REST });

  connect(servers: PolicyServers): void {
    this.#servers = servers;
  }

  /**
   * The event with the signature of the room's policy server, if it has one. Throws what that server says when it
   * does not recommend the event.
   */
  async signed(rooms: Rooms, room: Room, event: RoomEvent): Promise<RoomEvent> {
    const policy = await policyOf(rooms, room);
    if (!policy || isExempt(event) || isSigned(event, policy)) return event;
    const answer = await this.#ask(policy.via, event);
    const signature = objectAt(answer[policy.via])[KEY_ID];
    if (typeof signature !== 'string')
      throw forbidden('The policy server of the room has not signed the event');
    const pdu = withSignature(event.pdu, policy.via, KEY_ID, signature);
    checkPdu(pdu, event.version, { others: true });
    const signed = viewOf(pdu, event.eventId, event.version);
    if (!isSigned(signed, policy)) throw forbidden('The signature of the policy server of the room is wrong');
    return signed;
  }

  /** The same for an event of others: `undefined` when it is not recommended. */
  async recommended(rooms: Rooms, room: Room, event: RoomEvent): Promise<RoomEvent | undefined> {
    for (let tries = 0; ; tries++) {
      try {
        return await this.signed(rooms, room, event);
      } catch (error) {
        if (!(error instanceof MatrixError)) throw error;
        if (error.status !== 429 || tries > 0) return undefined;
        const { retry_after_ms: wait } = error.extra;
        await delay(typeof wait === 'number' ? Math.min(Math.max(wait, 0), MAX_WAIT) : MAX_WAIT);
      }
    }
  }

  async #ask(server: string, event: RoomEvent): Promise<JsonObject> {
    const resting = this.#resting.get(server);
    if (resting) throw resting;
    if (!this.#servers) throw forbidden('This server asks no policy servers');
    try {
      return await this.#servers.sign(server, event);
    } catch (error) {
      if (error instanceof MatrixError && error.status >= 500) this.#resting.set(server, error);
      throw error;
    }
  }
}

/** Spec: "Determining if a Policy Server is enabled in a room". */
async function policyOf(rooms: Rooms, room: Room): Promise<Policy | undefined> {
  const ref = room.state.get('m.room.policy', '');
  const event = ref && (await rooms.parts.events.get(ref.eventId));
  if (!event) return undefined;
  const { via, public_keys: keys } = event.content;
  const { ed25519: publicKey } = objectAt(keys);
  if (typeof via !== 'string' || typeof publicKey !== 'string' || !room.servers.has(via)) return undefined;
  return { via, publicKey };
}

/** So that a room gets rid of a policy server that does not answer. */
function isExempt({ type, stateKey }: RoomEvent): boolean {
  return type === 'm.room.policy' && stateKey === '';
}

function isSigned(event: RoomEvent, { via, publicKey }: Policy): boolean {
  const signature = signatureOf(event.pdu, via, KEY_ID);
  const key = verifyKey(publicKey);
  return signature !== undefined && key !== undefined && verifySignature(key, signedText(event), signature);
}

function objectAt(value: JsonValue | undefined): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {};
}
