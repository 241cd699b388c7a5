/** Where a server under test runs. */
export interface Machine {
  /** At which it listens. */
  readonly address: string;
  /** What a command begins with that is to run there. */
  readonly prefix: readonly string[];
}

export const THIS_MACHINE: Machine = { address: '127.0.0.1', prefix: [] };

/** Machines that `chaos/namespaces.ts` makes; certificates are for them too. */
export const MADE_MACHINES: readonly string[] = Array.from({ length: 32 }, (_, i) => `10.213.77.${i + 1}`);
