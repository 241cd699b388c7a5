import type { Pdu } from '@trellis/protocol/event.ts';

/**
 * What rooms ask of other servers. Implemented by federation. Every call is bounded in time and size, and throws when
 * the server has no answer; what comes back is unchecked.
 */
export interface RemoteServers {
  event(server: string, eventId: string): Promise<Pdu>;
  /** Events between `earliest` and `latest`, these not included. */
  missingEvents(
    server: string,
    roomId: string,
    query: {
      readonly earliest: readonly string[];
      readonly latest: readonly string[];
      readonly limit: number;
      readonly minDepth: number;
    },
  ): Promise<Pdu[]>;
  /** The state before an event. */
  stateIds(
    server: string,
    roomId: string,
    eventId: string,
  ): Promise<{ stateIds: string[]; authChainIds: string[] }>;
  /** The events of that state and their auth chains, in any order, handed on as they come. */
  state(
    server: string,
    roomId: string,
    eventId: string,
    take: (pdus: readonly Pdu[]) => Promise<void>,
  ): Promise<void>;
  eventAuth(server: string, roomId: string, eventId: string): Promise<Pdu[]>;
  /** The events `from` and what precedes them. */
  backfill(server: string, roomId: string, from: readonly string[], limit: number): Promise<Pdu[]>;
  timestampToEvent(
    server: string,
    roomId: string,
    ts: number,
    dir: 'f' | 'b',
  ): Promise<{ eventId: string; originServerTs: number }>;
}
