import { randomBytes } from 'node:crypto';
import pg from 'pg';

/** How long making a connection may take, in milliseconds. */
const CONNECT_LIMIT = 5_000;
/** Silence after which the operating system asks whether the other side is still there, in milliseconds. */
const KEEPALIVE = 10_000;

/** What Trellis needs of a session; the others that libpq knows lead to servers that store nothing. */
const TARGETS = ['any', 'read-write', 'primary'];

/**
 * A connection URL that names several hosts, as libpq takes it, as one for each host: `postgresql://u@h1:5432,h2/db`
 * or `postgresql://u@/db?host=/run/a,/run/b&port=5432,5433`.
 *
 * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
 */
export function urlsOfHosts(url: string): string[] {
  const parts = /^(postgres(?:ql)?:\/\/)([^/?#]*)([^?#]*)(?:\?([^#]*))?/.exec(url);
  if (!parts) return [url];
  const [, scheme, authority = '', path, query = ''] = parts;
  const at = authority.lastIndexOf('@') + 1;
  const options = new URLSearchParams(query);
  const target = options.get('target_session_attrs');
  if (target !== null && !TARGETS.includes(target))
    throw new Error(`target_session_attrs=${target}: the database is to be written to, use read-write`);
  const inQuery = options.get('host');
  const ports = options.get('port')?.split(',') ?? [];
  for (const name of ['target_session_attrs', 'load_balance_hosts', 'host', 'port']) options.delete(name);
  const hosts = inQuery === null ? authority.slice(at).split(',') : inQuery.split(',');
  return hosts.map((host, i) => {
    const own = new URLSearchParams(options);
    if (inQuery !== null && host !== '') own.set('host', host);
    const port = ports.length > 1 ? ports[i] : ports[0];
    if (port) own.set('port', port);
    const search = own.size > 0 ? `?${own}` : '';
    return `${scheme}${authority.slice(0, at)}${inQuery === null ? host : ''}${path}${search}`;
  });
}

/** A connection that knows which of the hosts it leads to. */
export interface HostClient extends pg.Client {
  readonly hostIndex: number;
  /** As the server says when it answers, PostgreSQL 14 and later; poolers do not pass it on. */
  readonly isStandby: boolean | undefined;
  /** Process id of the backend, or what a pooler gives for it. */
  readonly processID: number | null;
  readonly isLost: boolean;
  /** Looked at, and found to be of the right kind. */
  approved: boolean;
  /** Statements that are not answered yet, and since when that is waited for. */
  underWay: number;
  busySince: number | undefined;
  /** Ends it, whatever it is at. */
  cut(): void;
}

/** The servers of which one is the primary: connections are made to the one that was it last, else to the next. */
export class DatabaseHosts {
  /** Of all sessions of this pool, so that they can be told from others' on the server. */
  readonly applicationName: string;
  readonly count: number;
  /** For the pool: leads to the current host. */
  readonly Client: new () => pg.ClientBase;
  readonly #configs: readonly pg.ClientConfig[];
  #current = 0;

  constructor(options: pg.PoolConfig) {
    this.applicationName = options.application_name ?? `trellis ${randomBytes(6).toString('hex')}`;
    const { connectionString, ...rest } = options;
    const urls = connectionString ? urlsOfHosts(connectionString) : [undefined];
    this.#configs = urls.map((url) => ({
      connectionTimeoutMillis: CONNECT_LIMIT,
      // Statements that do not wait for each other are sent one behind the other.
      pipeline: true,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEPALIVE,
      ...rest,
      ...(url !== undefined && { connectionString: url }),
      application_name: this.applicationName,
    }));
    this.count = this.#configs.length;
    const next = () => [this.#configs[this.#current]!, this.#current] as const;
    this.Client = class extends ClientOfHost {
      constructor() {
        super(...next());
      }
    };
  }

  get current(): number {
    return this.#current;
  }

  /** This host is no use now: the next connection goes to the next one. */
  passOver(index: number): void {
    if (index === this.#current) this.#current = (index + 1) % this.count;
  }

  clientTo(index: number): HostClient {
    return new ClientOfHost(this.#configs[index]!, index);
  }
}

/** What is used of the driver's inner connection, which its types leave out. */
interface DriverConnection {
  on(
    event: 'parameterStatus',
    listener: (message: { parameterName: string; parameterValue: string }) => void,
  ): void;
  readonly stream: { destroy(): void };
}

class ClientOfHost extends pg.Client implements HostClient {
  readonly hostIndex: number;
  declare readonly processID: number | null;
  isStandby: boolean | undefined;
  isLost = false;
  approved = false;
  underWay = 0;
  busySince: number | undefined;

  constructor(config: pg.ClientConfig, hostIndex: number) {
    super(config);
    this.hostIndex = hostIndex;
    // A connection that breaks while it is lent out must not end the process: whoever uses it hears of it.
    this.on('error', () => {
      this.isLost = true;
    });
    this.on('end', () => {
      this.isLost = true;
    });
    this.#connection.on('parameterStatus', ({ parameterName, parameterValue }) => {
      if (parameterName === 'in_hot_standby') this.isStandby = parameterValue === 'on';
    });
  }

  get #connection(): DriverConnection {
    return (this as unknown as { connection: DriverConnection }).connection;
  }

  cut(): void {
    this.#connection.stream.destroy();
  }
}
