import { setFlagsFromString } from 'node:v8';

/**
 * By how much the heap may grow over what is in use before garbage is looked for. By itself V8 lets it grow fourfold on
 * machines with much memory, which a server that takes in a large room would fill with what it has long done with. The
 * search runs beside the work, and costs no more time that can be measured.
 */
const GROWTH_PERCENT = 70;

export function boundHeapGrowth(): void {
  setFlagsFromString(`--heap-growing-percent=${GROWTH_PERCENT}`);
}
