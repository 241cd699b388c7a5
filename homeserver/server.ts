import { mkdir, readFile } from 'node:fs/promises';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { FastifyBaseLogger, FastifyInstance } from 'fastify';
import { composeCore, type Lifecycle } from './compose/core.ts';
import { compose } from './compose/index.ts';
import type { Config } from './config/schema.ts';
import { createHttpServer } from './http-server.ts';
import { lockInstance } from './instance-lock.ts';
import { openDatabase } from './open-database.ts';
import { loadSigningKey } from './signing-key-file.ts';

/** How long a stop waits for requests that are under way, in milliseconds. */
const ANSWER_LIMIT = 5_000;

export interface RunningServer {
  /** Why it cannot go on, once that is so: it is to be started again. */
  readonly failed: Promise<string>;
  /** Reads the certificate again: after it was renewed. */
  reloadCertificate(): Promise<void>;
  /** Answers what is under way, stores what is not stored, closes the database. */
  close(): Promise<void>;
}

/** Starts everything and listens. When it throws, all that had been started is stopped. */
export async function startServer(config: Config, log: FastifyBaseLogger): Promise<RunningServer> {
  await mkdir(config.data_dir, { recursive: true });
  await lockInstance(config.data_dir);
  const [database, signingKey] = await Promise.all([openDatabase(config), loadSigningKey(config.data_dir)]);
  if (database.migrated.length > 0) log.info({ migrations: database.migrated }, 'database migrated');
  const lifecycle: Lifecycle = { ready: [], close: [] };
  const close = async () => {
    for (const task of lifecycle.close.toReversed())
      await Promise.resolve()
        .then(task)
        .catch((err: unknown) => log.error({ err }, 'stopping failed'));
    await database.close();
  };
  try {
    const core = await composeCore({ config, log, db: database.db, signingKey }, lifecycle);
    const app = createHttpServer(log, { trustProxy: config.http.trust_proxy });
    await compose(core, app);
    await app.ready();
    for (const task of lifecycle.ready) await task();
    const tls = config.tls && (await listenTls(config.tls, app));
    await app.listen({ host: config.http.host, port: config.http.port });
    lifecycle.close.push(async () => {
      core.notifier.close();
      const late = setTimeout(() => {
        app.server.closeAllConnections();
        tls?.closeAllConnections();
      }, ANSWER_LIMIT);
      await Promise.all([app.close(), tls?.close()]);
      clearTimeout(late);
    });
    const failed = database.died.then((words) => `PostgreSQL ended: ${words}`);
    return { failed, close, reloadCertificate: async () => tls?.reload() };
  } catch (error) {
    await close();
    throw error;
  }
}

async function listenTls(tls: NonNullable<Config['tls']>, app: FastifyInstance) {
  const read = async () => ({ cert: await readFile(tls.certificate), key: await readFile(tls.key) });
  const server: TlsServer = createTlsServer(await read(), (request, response) =>
    app.routing(request, response),
  );
  await new Promise<void>((listening, failed) => {
    server.once('error', failed);
    server.listen(tls.port, tls.host, listening);
  });
  return {
    reload: async () => server.setSecureContext(await read()),
    closeAllConnections: () => server.closeAllConnections(),
    close: () =>
      new Promise<void>((closed) => {
        server.close(() => closed());
        server.closeIdleConnections();
      }),
  };
}
