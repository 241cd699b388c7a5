import { readFile } from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import { createServer as createTlsServer, Server as TlsServer } from 'node:https';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Config } from './config/schema.ts';
import type { DoorName } from './doors.ts';

/** How long connections are kept without a request; longer than proxies in front of it do. In milliseconds. */
const KEEP_ALIVE = 72_000;
/** A request that has not come whole by then is given up: an upload over a slow line takes its time. In milliseconds. */
const REQUEST_LIMIT = 10 * 60_000;
/** How long a stop waits for requests that are under way, in milliseconds. */
const ANSWER_LIMIT = 5_000;
/** How often it is looked whether all have gone, in milliseconds. */
const LOOK = 20;

/** The HTTP servers of one process. They listen nowhere: connections are given to them. */
export class HttpServers {
  readonly #app: FastifyInstance;
  readonly #tls: Config['tls'];
  readonly #servers = new Map<DoorName, Server | TlsServer>();
  readonly #connections = new Set<Socket>();

  private constructor(app: FastifyInstance, tls: Config['tls']) {
    this.#app = app;
    this.#tls = tls;
  }

  /**
   * @param app is ready
   * @param serve leads to the app
   */
  static async create(
    app: FastifyInstance,
    tls: Config['tls'],
    serve: RequestListener = app.routing,
  ): Promise<HttpServers> {
    const servers = new HttpServers(app, tls);
    const options = { keepAliveTimeout: KEEP_ALIVE, requestTimeout: REQUEST_LIMIT };
    servers.#add('http', createServer(options, serve));
    if (tls) servers.#add('tls', createTlsServer({ ...options, ...(await certificate(tls)) }, serve));
    return servers;
  }

  #add(door: DoorName, server: Server | TlsServer): void {
    this.#servers.set(door, server);
    // Who watches over the time limits of connections begins at this event.
    server.emit('listening');
  }

  give(door: DoorName, connection: Socket): void {
    const server = this.#servers.get(door);
    if (!server) return void connection.destroy();
    // As an HTTP server has it that listens itself.
    connection.allowHalfOpen = door === 'http';
    this.#connections.add(connection);
    connection.once('close', () => this.#connections.delete(connection));
    server.emit('connection', connection);
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Closes so many connections, with the next answers. */
  sendAway(count: number): void {
    this.#app.sendAway = count;
  }

  /** Reads the certificate again. */
  async reload(): Promise<void> {
    const server = this.#servers.get('tls');
    if (this.#tls && server instanceof TlsServer) server.setSecureContext(await certificate(this.#tls));
  }

  /**
   * Serves on for a while, and with each answer sends the client elsewhere for its next request: so no connection has to
   * be closed that somebody is about to use. Ends early when nobody is left, where nobody new can come.
   */
  async drain(limit: number, closed: boolean): Promise<void> {
    this.#app.draining = true;
    for (const end = Date.now() + limit; Date.now() < end; await pause())
      if (closed && this.#connections.size === 0) return;
  }

  /** Answers what is under way, and no more. Nobody is to be given from now on. */
  async close(): Promise<void> {
    this.#app.draining = true;
    for (const end = Date.now() + ANSWER_LIMIT; Date.now() < end; await pause()) {
      for (const server of this.#servers.values()) server.closeIdleConnections();
      if (this.#connections.size === 0) break;
    }
    for (const connection of this.#connections) connection.destroy();
    for (const server of this.#servers.values()) server.close();
  }
}

function pause(): Promise<void> {
  return new Promise((wake) => setTimeout(wake, LOOK));
}

async function certificate(tls: NonNullable<Config['tls']>) {
  return { cert: await readFile(tls.certificate), key: await readFile(tls.key) };
}
