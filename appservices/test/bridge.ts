import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registration } from '../registration.ts';

export interface BridgeRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly token: string | undefined;
  // biome-ignore lint/suspicious/noExplicitAny: the tests look at bodies of every shape
  readonly body: any;
}

export interface BridgeAnswer {
  readonly status: number;
  readonly body?: unknown;
}

/** An application service over HTTP that notes what it is asked and answers as a test says. */
export class Bridge {
  readonly requests: BridgeRequest[] = [];
  /** `undefined`: no answer at all. */
  answer: (request: BridgeRequest) => BridgeAnswer | undefined | Promise<BridgeAnswer> = () => ({
    status: 200,
  });
  #server: Server | undefined;
  #port = 0;

  async start(): Promise<void> {
    this.#server = createServer(async (incoming, response) => {
      const request = await read(incoming);
      this.requests.push(request);
      const answer = await this.answer(request);
      if (answer) response.writeHead(answer.status).end(JSON.stringify(answer.body ?? {}));
    });
    this.#server.listen(this.#port, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  stop(): void {
    this.#server?.close();
    this.#server?.closeAllConnections();
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  registration(more: Partial<Registration> = {}): Registration {
    return {
      id: 'irc',
      url: this.url,
      asToken: 'as',
      hsToken: 'hs',
      senderLocalpart: 'ircbot',
      users: [{ regex: '@irc_.*', exclusive: true }],
      aliases: [],
      rooms: [],
      rateLimited: false,
      protocols: [],
      receiveEphemeral: false,
      pushEphemeral: false,
      deviceNews: false,
      ...more,
    };
  }

  get transactions(): BridgeRequest[] {
    return this.requests.filter(({ method }) => method === 'PUT');
  }

  /** What the events of all transactions say, in their order. */
  get bodies(): string[] {
    return this.transactions
      .flatMap(({ body }) => body.events)
      .filter(({ type }) => type === 'm.room.message')
      .map(({ content }) => content.body);
  }
}

async function read(incoming: IncomingMessage): Promise<BridgeRequest> {
  const url = new URL(incoming.url!, 'http://bridge');
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk as Buffer);
  const text = Buffer.concat(chunks).toString();
  return {
    method: incoming.method!,
    path: decodeURIComponent(url.pathname),
    query: url.searchParams,
    token: incoming.headers.authorization,
    body: text === '' ? undefined : JSON.parse(text),
  };
}

export async function until(what: string, isSo: () => boolean, limitMs = 5_000): Promise<void> {
  const end = Date.now() + limitMs;
  while (!isSo()) {
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await new Promise((wake) => setTimeout(wake, 10));
  }
}
