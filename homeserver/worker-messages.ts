import type { PoolConfig } from 'pg';
import type { DoorName } from './doors.ts';
import type { Load } from './placement.ts';

/** What a worker is given by its supervisor, besides the configuration that it reads itself. */
export interface Place {
  readonly worker: number;
  /** Where the database is. */
  readonly database: PoolConfig;
  /** Known to the workers of this supervisor alone; not used where the configuration has one. */
  readonly secret: string;
}

export type ToWorker =
  | { readonly t: 'start'; readonly place: Place }
  /** With the connection itself. */
  | { readonly t: 'connection'; readonly n: number; readonly door: DoorName }
  /** So many connections are to be closed with their next answer: others have less to do. */
  | { readonly t: 'send-away'; readonly count: number }
  | { readonly t: 'reload' }
  /** @property drain others go on: clients are to be sent there */
  | { readonly t: 'stop'; readonly drain: boolean };

export type FromWorker =
  /** Listens to what it is told. */
  | { readonly t: 'hello' }
  | { readonly t: 'ready' }
  /** Has a connection. */
  | { readonly t: 'got'; readonly n: number }
  /** Now and then, when it has changed. */
  | { readonly t: 'load'; readonly load: Load }
  /** Could not start. */
  | { readonly t: 'refused'; readonly why: string };
