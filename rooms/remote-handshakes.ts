import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';

/** What a resident server proposes as a member event: data to read from, never signed as it stands. */
export interface MemberTemplate {
  /** Absent from servers that know no more than room versions 1 and 2. */
  readonly roomVersion: string | undefined;
  readonly event: Pdu;
}

/** The state of the room before the join, and its auth chain. */
export type JoinList = 'state' | 'auth_chain';

export interface JoinAnswer {
  /** The join as the resident server signed it too. */
  readonly event: Pdu | undefined;
  /** Set where members were left out, as far as they do not authorise anything: the servers that are in the room. */
  readonly serversInRoom?: readonly string[] | undefined;
}

/**
 * The handshakes for memberships with one other server (spec: server-server API, "Joining Rooms" to "Leaving Rooms").
 * Implemented by federation/outbound. Failures are `MatrixError`s that a client may see.
 */
export interface RemoteHandshakes {
  makeJoin(
    server: string,
    roomId: string,
    userId: string,
    versions: readonly string[],
  ): Promise<MemberTemplate>;
  /**
   * @param options.omitMembers the server may leave members out of the state
   * @param options.take given the events of the answer as they come
   */
  sendJoin(
    server: string,
    join: RoomEvent,
    options: {
      readonly omitMembers: boolean;
      readonly take: (pdus: readonly Pdu[], list: JoinList) => Promise<void>;
    },
  ): Promise<JoinAnswer>;
  makeKnock(
    server: string,
    roomId: string,
    userId: string,
    versions: readonly string[],
  ): Promise<MemberTemplate>;
  /** @returns the room's stripped state as it came */
  sendKnock(server: string, knock: RoomEvent): Promise<readonly Pdu[]>;
  makeLeave(server: string, roomId: string, userId: string): Promise<MemberTemplate>;
  sendLeave(server: string, leave: RoomEvent): Promise<void>;
  /** @returns the event as the invited user's server signed it: the caller checks that it is the same event */
  sendInvite(server: string, invite: RoomEvent, inviteRoomState: readonly Pdu[]): Promise<Pdu>;
}

/** Another server's answer is not what it should be. */
export function badAnswer(server: string, why: string): MatrixError {
  return new MatrixError(502, 'M_UNKNOWN', `${server} gave an answer that can't be used: ${why}`);
}

/** No new attempt begins after this: somebody waits for the outcome. */
const PATIENCE = 90_000;
/** One server may be wrong in refusing a user; that many are believed. */
const MAX_REFUSALS = 3;

/**
 * Tries servers one after the other until one attempt succeeds.
 * Throws the most telling error: a refusal before a failure to answer, an earlier one before a later one.
 */
export async function tryServers<T>(
  servers: readonly string[],
  attempt: (server: string) => Promise<T>,
  patience = PATIENCE,
): Promise<T> {
  const start = performance.now();
  let worst: MatrixError | undefined;
  let refusals = 0;
  for (const server of servers) {
    if (performance.now() - start > patience) break;
    try {
      return await attempt(server);
    } catch (error) {
      if (!(error instanceof MatrixError)) throw error;
      // Every other server would say the same.
      if (error.errcode === 'M_INCOMPATIBLE_ROOM_VERSION') throw error;
      if (!worst || weight(error) > weight(worst)) worst = error;
      if (error.status === 403 && ++refusals === MAX_REFUSALS) break;
    }
  }
  throw worst ?? new MatrixError(404, 'M_NOT_FOUND', 'No known servers are in that room');
}

function weight({ status }: MatrixError): number {
  if (status === 403) return 3;
  if (status === 404) return 1;
  return status < 500 ? 2 : 0;
}
