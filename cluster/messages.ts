import type { Json } from './cluster.ts';
import type { Member } from './rendezvous.ts';

/** A view as it travels. */
export interface ViewJson {
  readonly number: number;
  readonly members: readonly Member[];
  /** Those of them in which rooms live. */
  readonly homes: readonly string[];
}

/** One thing that all members are told, in the order of telling. Texts are JSON, passed on as they are. */
export type Item =
  /** A stream has come to a position, with the changes there. */
  | readonly ['change', stream: string, position: number, changes: string, isUrgent: boolean]
  /** A stream has come to a position; changes of someone who died may lie before it. */
  | readonly ['skip', stream: string, position: number]
  | readonly ['announce', topic: string, payload: string]
  /** Announcements of someone who died may be missing. */
  | readonly ['gap']
  | readonly ['view', view: ViewJson];

/** From a member to the coordinator. `n` comes back in the answer. */
export type ToCoordinator =
  /** @property ready whether it has duties by the view that it knows, or could have */
  | { readonly t: 'join'; readonly ready: boolean }
  /** Takes part in duties from now on. */
  | { readonly t: 'ready' }
  | { readonly t: 'reserve'; readonly n: number; readonly s: string; readonly c: number; readonly g: number }
  | {
      readonly t: 'complete';
      readonly n: number;
      readonly s: string;
      readonly p: number;
      readonly x: string;
      readonly u: boolean;
    }
  | { readonly t: 'announce'; readonly n: number; readonly s: string; readonly x: string }
  /** Everything up to this number was taken in. */
  | { readonly t: 'ack'; readonly q: number }
  /** Nobody asks it anything now: what it is told may come later, several things together. */
  | { readonly t: 'rest' }
  /** Somebody asks it something: answered once it has been told all. */
  | { readonly t: 'wake'; readonly n: number }
  | { readonly t: 'released'; readonly v: number }
  /** Wants to have no duties any more. */
  | { readonly t: 'leave' }
  /** Has none, and goes. */
  | { readonly t: 'gone' }
  /** Has lost touch with another member. */
  | { readonly t: 'unreachable'; readonly id: string };

/** From the coordinator of a term to a member. */
export type ToMember =
  /** There is a new coordinator: come over. */
  | { readonly t: 'term' }
  | {
      readonly t: 'welcome';
      /** What was told before is known with these positions, and to be acknowledged with them. */
      readonly q: number;
      readonly positions: Readonly<Record<string, number>>;
    }
  | { readonly t: 'reserved'; readonly n: number; readonly p: number }
  /** @property ack whether it is to be acknowledged */
  | { readonly t: 'tell'; readonly q: number; readonly items: readonly Item[]; readonly ack: boolean }
  /** All members have taken in what these were about. */
  | { readonly t: 'done'; readonly ns: readonly number[] }
  | { readonly t: 'prepare'; readonly view: ViewJson }
  /** The view that was prepared does not come to be; another will. */
  | { readonly t: 'cancel' }
  /** Has no duties any more. */
  | { readonly t: 'left' }
  | { readonly t: 'refused'; readonly n: number }
  /** The coordinator goes, and leaves nothing behind. */
  | { readonly t: 'resigned' }
  /** Was shut out: only a new start helps. */
  | { readonly t: 'fenced' };

/** Between two members. */
export type Call =
  | {
      readonly t: 'call';
      readonly n: number;
      readonly d: string;
      readonly k: string;
      readonly m: string;
      readonly a: Json;
    }
  | { readonly t: 'result'; readonly n: number; readonly a?: Json | undefined }
  /** Not begun: the duty is another's. */
  | { readonly t: 'moved'; readonly n: number }
  | {
      readonly t: 'error';
      readonly n: number;
      readonly status: number;
      readonly errcode: string;
      readonly message: string;
      readonly extra?: Json;
    };

export type Message =
  | { readonly c: ToCoordinator; readonly term: number }
  | { readonly m: ToMember; readonly term: number }
  | { readonly r: Call };
