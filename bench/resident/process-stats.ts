import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

const SAMPLE_MS = 50;

/** Follows the resident memory of processes. */
export class ProcessStats {
  readonly #pids: readonly number[];
  readonly #timer: NodeJS.Timeout;
  readonly #cpuBefore: number;
  readonly #before: number;
  #peak: number;

  constructor(pids: readonly number[]) {
    this.#pids = pids;
    this.#before = residentMb(pids);
    this.#peak = this.#before;
    this.#cpuBefore = cpuSeconds(pids);
    this.#timer = setInterval(() => {
      this.#peak = Math.max(this.#peak, residentMb(pids));
    }, SAMPLE_MS);
  }

  stop(): object {
    clearInterval(this.#timer);
    return {
      cpu_s: Number((cpuSeconds(this.#pids) - this.#cpuBefore).toFixed(2)),
      rss_before_mb: Math.round(this.#before),
      rss_peak_mb: Math.round(this.#peak),
    };
  }
}

const IDLE_STEP_MS = 1000;
/** Seconds of CPU in a step. */
const IDLE_CPU = 0.1;

/** Waits until the processes do next to nothing: they may have put something off. */
export async function untilIdle(pids: readonly number[], timeoutMs: number): Promise<void> {
  const until = performance.now() + timeoutMs;
  for (let before = cpuSeconds(pids); performance.now() < until; ) {
    await delay(IDLE_STEP_MS);
    const now = cpuSeconds(pids);
    if (now - before < IDLE_CPU) return;
    before = now;
  }
}

function residentMb(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + Number(/VmRSS:\s+(\d+)/.exec(statusOf(pid))?.[1] ?? 0) / 1024, 0);
}

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return '';
  }
}

function cpuSeconds(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) / 100;
  }, 0);
}
