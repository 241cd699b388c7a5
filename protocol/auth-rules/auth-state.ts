import type { AuthView } from '../event.ts';

/** The state that an event is checked against. */
export interface AuthState {
  get(type: string, stateKey: string): AuthView | undefined;
}
