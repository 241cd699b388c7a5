import type { Logger } from 'matrix-js-sdk/lib/logger.js';

const silence = () => {};

export const quiet: Logger = {
  trace: silence,
  debug: silence,
  info: silence,
  warn: silence,
  error: silence,
  getChild: () => quiet,
};

/**
 * Parts of matrix-js-sdk log to the console whatever logger they are given, and its requests leave long timers
 * behind, which would keep the process of the test alive.
 */
export function calmSdk(): void {
  console.log = console.debug = console.info = console.warn = console.error = silence;
  const setTimer = globalThis.setTimeout;
  globalThis.setTimeout = ((run: () => void, ms?: number, ...rest: []) => {
    const timer = setTimer(run, ms, ...rest);
    return (ms ?? 0) >= 10_000 ? timer.unref() : timer;
  }) as typeof setTimeout;
}
