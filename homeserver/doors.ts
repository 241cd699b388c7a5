import { lookup } from 'node:dns/promises';
import { createServer, type Server, type Socket } from 'node:net';
import type { Config } from './config/schema.ts';

/** By which a connection comes in: plain HTTP, or HTTPS. */
export type DoorName = 'http' | 'tls';
export type Enter = (door: DoorName, connection: Socket) => void;

interface Address {
  readonly door: DoorName;
  readonly host: string;
  readonly port: number;
}

/**
 * What Trellis listens to. Whoever enters is led to the HTTP servers of this process (http-servers.ts), or to those of
 * another one.
 */
export class Doors {
  readonly #servers: Server[] = [];

  private constructor() {}

  /** @param elsewhere whether others will read from the connections */
  static async open(config: Config, enter: Enter, elsewhere = false): Promise<Doors> {
    const doors = new Doors();
    try {
      for (const address of await addressesOf(config)) await doors.#open(address, enter, elsewhere);
      return doors;
    } catch (error) {
      doors.close();
      throw error;
    }
  }

  async #open({ door, host, port }: Address, enter: Enter, elsewhere: boolean): Promise<void> {
    const server = createServer(
      { noDelay: true, allowHalfOpen: door === 'http', pauseOnConnect: elsewhere },
      (connection) => enter(door, connection),
    );
    await new Promise<void>((listening, failed) => {
      server.once('error', failed);
      server.listen(port, host, () => {
        server.off('error', failed);
        listening();
      });
    });
    this.#servers.push(server);
  }

  /** Nobody comes in any more; who is in, stays. */
  close(): void {
    for (const server of this.#servers.splice(0)) server.close();
  }
}

/** Of "localhost" all that it is: clients take one or the other. */
async function addressesOf({ http, tls }: Config): Promise<Address[]> {
  const addresses: Address[] = [];
  const sections = [
    { door: 'http' as const, ...http },
    ...(tls ? [{ door: 'tls' as const, host: tls.host, port: tls.port }] : []),
  ];
  for (const { door, host, port } of sections) {
    const hosts =
      host === 'localhost' ? (await lookup(host, { all: true })).map(({ address }) => address) : [host];
    for (const each of new Set(hosts)) addresses.push({ door, host: each, port });
  }
  return addresses;
}
