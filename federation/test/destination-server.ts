import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { testTls } from './peers.ts';

export interface ReceivedTransaction {
  readonly id: string;
  readonly pdus: JsonObject[];
  readonly edus: Array<{ edu_type: string; content: JsonObject }>;
}

/** Another server that takes transactions, and can be made to fail, to be slow, to stop and to start again. */
export class DestinationServer {
  readonly transactions: ReceivedTransaction[] = [];
  /** Answers of the next requests; 200 when there are none. */
  readonly answers: Array<{ status: number; body?: JsonObject }> = [];
  requests = 0;
  inFlight = 0;
  mostInFlight = 0;
  delayMs = 0;
  #server: Server | undefined;
  #port = 0;

  get name(): string {
    return `one.test:${this.#port}`;
  }

  get pdus(): JsonObject[] {
    return this.transactions.flatMap(({ pdus }) => pdus);
  }

  /** Bodies of messages, in the order of their coming. */
  get bodies(): unknown[] {
    return this.pdus.flatMap(({ content }) => (content as JsonObject).body ?? []);
  }

  edus(type: string): JsonObject[] {
    return this.transactions.flatMap(({ edus }) =>
      edus.filter(({ edu_type }) => edu_type === type).map(({ content }) => content),
    );
  }

  async start(): Promise<void> {
    const server = createServer(testTls, (request, response) => {
      this.#answer(request, response).catch(() => response.destroy());
    });
    this.#server = server;
    await new Promise<void>((listening) => server.listen(this.#port, '127.0.0.1', listening));
    this.#port = (server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server) return;
    server.closeAllConnections();
    await new Promise((closed) => server.close(closed));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.requests++;
    this.mostInFlight = Math.max(this.mostInFlight, ++this.inFlight);
    try {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      if (this.delayMs > 0) await new Promise((wake) => setTimeout(wake, this.delayMs));
      const { status, body } = this.answers.shift() ?? { status: 200 };
      if (status === 200) {
        const sent = JSON.parse(Buffer.concat(chunks).toString()) as ReceivedTransaction;
        const id = decodeURIComponent(request.url!.split('/').at(-1)!);
        this.transactions.push({ id, pdus: sent.pdus, edus: sent.edus });
      }
      response
        .writeHead(status, { 'content-type': 'application/json' })
        .end(JSON.stringify(body ?? { pdus: {} }));
    } finally {
      this.inFlight--;
    }
  }
}
