import { readFileSync } from 'node:fs';
import { Socket } from 'node:net';

/**
 * Imported into the process of a server under test before all else: its connections to other servers go by the
 * links of the harness, and its clock is wrong. The server itself knows nothing of it.
 */
export interface Surroundings {
  /** Milliseconds that the clock is ahead. */
  readonly skew: number;
  /** By the port of another server: the port of the link to it. */
  readonly links: Readonly<Record<string, number>>;
}

const file = process.env.TRELLIS_CHAOS_SURROUNDINGS;
const read = (): Surroundings => JSON.parse(readFileSync(file!, 'utf8'));

if (file) {
  changeClock(read().skew);
  changeConnections(() => read().links);
}

function changeClock(skew: number): void {
  const RealDate = Date;
  const now = () => RealDate.now() + skew;
  globalThis.Date = new Proxy(RealDate, {
    construct: (target, args, newTarget) =>
      Reflect.construct(target, args.length === 0 ? [now()] : args, newTarget),
    apply: () => new RealDate(now()).toString(),
    get: (target, name) => (name === 'now' ? now : Reflect.get(target, name)),
  });
}

/** Links are read anew for each connection: they are made known when all servers have their ports. */
function changeConnections(links: () => Surroundings['links']): void {
  const connect = Socket.prototype.connect as (...args: unknown[]) => Socket;
  const changed = (options: unknown): unknown => {
    if (typeof options !== 'object' || options === null || !('port' in options)) return options;
    const port = links()[String(options.port)];
    return port === undefined ? options : { ...options, port };
  };
  Socket.prototype.connect = function (this: Socket, ...args: unknown[]): Socket {
    // net.connect() hands over its arguments as a list that it has marked as prepared.
    if (Array.isArray(args[0])) args[0][0] = changed(args[0][0]);
    else args[0] = changed(args[0]);
    return connect.apply(this, args);
  } as typeof Socket.prototype.connect;
}
