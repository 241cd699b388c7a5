import fc from 'fast-check';

/**
 * Time for one property, in milliseconds: a second in the ordinary test run. TRELLIS_FUZZ_MS gives more, for runs
 * over night; TRELLIS_FUZZ_SEED repeats a run.
 */
const BUDGET = Number(process.env.TRELLIS_FUZZ_MS ?? 1000);
export const SEED = Number(process.env.TRELLIS_FUZZ_SEED ?? Date.now() % 2 ** 31);

/** For `fc.assert`: as many runs as the time allows. What fails is reported with its seed. */
export function withinBudget(share = 1): fc.Parameters<unknown> {
  return {
    seed: SEED,
    numRuns: 1_000_000,
    interruptAfterTimeLimit: BUDGET * share,
    markInterruptAsFailure: false,
    // Shrinking what fails may take longer than finding it.
    endOnFailure: false,
  };
}

/** What one call may take, whatever it is given. In milliseconds, generous: tests share their processors. */
const MAX_MS = 2_000;

/** Runs something that must end, and not late. */
export function timed<T>(run: () => T): T {
  const start = performance.now();
  const result = run();
  const took = performance.now() - start;
  if (took > MAX_MS) throw new Error(`took ${took} ms`);
  return result;
}

/** A text with things done to it that people who write parsers do not think of. */
export function mangled(texts: fc.Arbitrary<string>): fc.Arbitrary<string> {
  const odd = fc.constantFrom(
    '\0',
    '"',
    '\\',
    '{',
    '[',
    ',',
    ':',
    '=',
    ';',
    '\ud800',
    '\u{1f4a5}',
    '\r\n',
    '%',
    '',
  );
  return fc
    .tuple(
      texts,
      fc.array(fc.tuple(fc.nat(), odd, fc.nat({ max: 3 }), fc.nat({ max: 3000 })), { maxLength: 4 }),
    )
    .map(([text, changes]) => {
      let result = text;
      for (const [where, what, removed, times] of changes) {
        const at = where % (result.length + 1);
        // Mostly once; now and then so often that what is quadratic shows.
        const inserted = what.repeat(times > 2900 ? times : 1);
        result = result.slice(0, at) + inserted + result.slice(at + removed);
      }
      return result;
    });
}
