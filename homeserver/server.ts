import type { Socket } from 'node:net';
import type { ClusterMember } from '@trellis/cluster/member.ts';
import type { FastifyBaseLogger } from 'fastify';
import { composeCore, type Lifecycle } from './compose/core.ts';
import { compose } from './compose/index.ts';
import type { Config } from './config/schema.ts';
import { type DoorName, Doors } from './doors.ts';
import { healthRoutes } from './health.ts';
import { boundHeapGrowth } from './heap.ts';
import { createHttpServer } from './http-server.ts';
import { HttpServers } from './http-servers.ts';
import { lockInstance } from './instance-lock.ts';
import { joinOthers } from './join.ts';
import { openDatabase } from './open-database.ts';
import { PassingOn } from './passing-on.ts';
import type { Load } from './placement.ts';
import { atTheGate, roleGate } from './role-gate.ts';
import type { RunningServer } from './running-server.ts';
import { loadSigningKey } from './signing-key-file.ts';
import type { Place } from './worker-messages.ts';

/** How often it is looked whether anybody is connected, in milliseconds. */
const REST_INTERVAL = 500;

/** A process that serves. */
interface Server extends RunningServer {
  /** For connections that a supervisor has accepted. */
  give(door: DoorName, connection: Socket): void;
  /** Closes so many connections, with the next answers. */
  sendAway(count: number): void;
  /** What its supervisor goes by; how busy it is aside. */
  standing(): Omit<Load, 'busy'>;
}

/**
 * Starts everything and listens. When it throws, all that had been started is stopped.
 *
 * @param place in a process that a supervisor started
 */
export async function startServer(config: Config, log: FastifyBaseLogger, place?: Place): Promise<Server> {
  boundHeapGrowth();
  const several = config.redis !== undefined;
  if (!place) await lockInstance(config.data_dir, several);
  const database = await openDatabase(config, { given: place?.database });
  if (database.migrated.length > 0) log.info({ migrations: database.migrated }, 'database migrated');
  database.db.onAway((err) =>
    err ? log.error({ err: err.cause }, 'the database is away') : log.info('the database is there again'),
  );
  const lifecycle: Lifecycle = { ready: [], serving: [], close: [] };
  let member: ClusterMember | undefined;
  const end = async () => {
    await member?.leave().catch((err: unknown) => log.error({ err }, 'leaving the others failed'));
    for (const task of lifecycle.close.toReversed())
      await Promise.resolve()
        .then(task)
        .catch((err: unknown) => log.error({ err }, 'stopping failed'));
    await database.close();
  };
  try {
    const signingKey = await loadSigningKey(config, database.db, !several && !place);
    member = await joinOthers(config, place, database.db, log);
    const core = await composeCore(
      { config, log, db: database.db, history: database.history, signingKey, member },
      lifecycle,
    );
    const app = createHttpServer(log, { trustProxy: config.http.trust_proxy });
    healthRoutes(app);
    const passingOn = new PassingOn(core.cluster);
    passingOn.connect(app);
    await compose(core, app);
    await app.ready();
    for (const task of lifecycle.ready) await task();
    const serve = member ? atTheGate(member, roleGate(config.cluster.roles, passingOn, app)) : app.routing;
    const servers = await HttpServers.create(app, config.tls, serve);
    lifecycle.close.push(() => app.close());
    await member?.ready();
    const resting = setInterval(
      () => servers.connections === 0 && core.cluster.rest(),
      REST_INTERVAL,
    ).unref();
    lifecycle.close.push(() => clearInterval(resting));
    const give = (door: DoorName, connection: Socket) => servers.give(door, connection);
    const doors = place ? undefined : await Doors.open(config, give);
    for (const task of lifecycle.serving) task();
    const close = async (drain = several) => {
      core.notifier.close();
      passingOn.hurry();
      if (drain) await servers.drain(config.cluster.drain_ms, place !== undefined);
      doors?.close();
      await servers.close();
      await end();
    };
    const died = database.died.then((words) => `PostgreSQL ended: ${words}`);
    const failed = Promise.race(member ? [died, member.failed] : [died]);
    const standing = () => ({
      connections: servers.connections,
      isHome: core.cluster.owns('room', ''),
    });
    const sendAway = (count: number) => servers.sendAway(count);
    return { failed, close, give, standing, sendAway, reload: () => servers.reload() };
  } catch (error) {
    await end();
    throw error;
  }
}
