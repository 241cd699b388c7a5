import {
  Agent,
  createServer,
  type IncomingMessage,
  type RequestListener,
  request,
  type Server,
  type ServerResponse,
} from 'node:http';
import { createServer as createTlsServer } from 'node:https';

/**
 * Stands before several processes and sends each request to the next of them, whoever it comes from: harsher than any
 * load balancer, so that nothing can work because a client happened to meet the same process twice.
 */
export class Spread {
  readonly #targets: readonly number[];
  readonly #agent = new Agent({ keepAlive: true });
  readonly #servers: Server[] = [];
  #turn = 0;

  /** @param targets ports on this machine */
  constructor(targets: readonly number[]) {
    this.#targets = targets;
  }

  async listen(port: number, tls?: { cert: string; key: string }): Promise<void> {
    const handle: RequestListener = (incoming, outgoing) => this.#pass(incoming, outgoing);
    const server = tls ? createTlsServer(tls, handle) : createServer(handle);
    // Whoever tests slow or idle clients means the server behind.
    server.requestTimeout = 0;
    await new Promise<void>((listening, failed) => {
      server.once('error', failed);
      server.listen(port, '127.0.0.1', listening);
    });
    this.#servers.push(server);
  }

  close(): void {
    for (const server of this.#servers.splice(0)) {
      server.close();
      server.closeAllConnections();
    }
    this.#agent.destroy();
  }

  #pass(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const port = this.#targets[this.#turn++ % this.#targets.length]!;
    const { method, url, rawHeaders } = incoming;
    const onward = request({ port, host: '127.0.0.1', method, path: url, agent: this.#agent });
    for (let i = 0; i < rawHeaders.length; i += 2) {
      const [name, value] = [rawHeaders[i]!, rawHeaders[i + 1]!];
      if (!/^(?:connection|keep-alive)$/i.test(name)) onward.appendHeader(name, value);
    }
    onward.on('response', (answer) => {
      const headers = answer.rawHeaders.filter(
        (_, i) => !/^(?:connection|keep-alive)$/i.test(answer.rawHeaders[i - (i % 2)]!),
      );
      outgoing.writeHead(answer.statusCode!, headers);
      answer.pipe(outgoing);
      answer.on('error', () => outgoing.destroy());
    });
    // As if nobody listened.
    onward.on('error', () => outgoing.destroy());
    outgoing.on('close', () => onward.destroy());
    incoming.pipe(onward);
  }
}
