// How `npm test` reports: a line for each file when it is done, failures in full, node's own summary at the end.
import { appendFileSync, globSync } from 'node:fs';
import { relative } from 'node:path';
import { inspect } from 'node:util';

/** What a test writes is shown when its file fails, but for this, which is shown at once. */
const ALOUD = /^(SKIPPED|Installing|TRELLIS_\w+_SEED=)/;
const MAX_OUTPUT = 20_000;

const shortName = (file) => relative(process.cwd(), file);
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

export default async function* report(source) {
  // The command line of the runner ends in the patterns of the files.
  const total = globSync(process.argv.slice(1)).length;
  const failures = [];
  const skipped = new Map();
  const output = new Map();
  let done = 0;
  for await (const { type, data } of source) {
    const keep = (text) => output.set(data.file, ((output.get(data.file) ?? '') + text).slice(-MAX_OUTPUT));
    if (type === 'test:stdout' || type === 'test:stderr') {
      if (ALOUD.test(data.message)) yield data.message;
      else keep(data.message);
    }
    if (type === 'test:diagnostic' && data.file !== undefined) keep(`ℹ ${data.message}\n`);
    if (type === 'test:pass' && data.skip) note(skipped, data);
    if (type === 'test:fail' && isCause(data)) {
      const failure = describeFailure(data);
      failures.push(failure);
      yield failure;
    }
    if (type !== 'test:summary') continue;
    if (data.file !== undefined && !data.success) yield output.get(data.file) ?? '';
    output.delete(data.file);
    if (data.file === undefined) yield* failures.length > 0 ? ['\nFAILED:\n', ...failures] : [];
    if (data.file === undefined) yield* tell(summary(data));
    else yield fileLine(++done, total, data, skipped.get(data.file));
  }
}

/** Into a file for whoever runs more than these tests. */
function tell(sums) {
  const file = process.env.TRELLIS_TEST_COUNTS;
  if (file) appendFileSync(file, `${JSON.stringify(sums)}\n`);
  const lines = Object.entries(sums).map(([name, value]) => `ℹ ${name} ${value}\n`);
  return file ? [] : [`\n${lines.join('')}`];
}

function note(skipped, { file, name, skip }) {
  const reasons = skipped.get(file) ?? new Set();
  skipped.set(file, reasons.add(typeof skip === 'string' ? skip : name));
}

/** A suite or file fails because of a test in it, which has been told then. */
function isCause({ details, todo }) {
  return !todo && details.error?.failureType !== 'subtestsFailed';
}

function describeFailure({ file, line, name, details: { error } }) {
  const cause = inspect(error?.cause ?? error, { colors: false }).replaceAll(/^/gm, '    ');
  return `\n✖ ${shortName(file ?? '')}:${line}  ${name}\n${cause}\n\n`;
}

function fileLine(done, total, { file, counts, duration_ms, success }, reasons) {
  const place = `[${String(done).padStart(String(total).length)}/${total}]`;
  const parts = [`${counts.tests} tests`, seconds(duration_ms)];
  if (counts.failed + counts.cancelled > 0) parts.unshift(`${counts.failed + counts.cancelled} FAILED`);
  if (reasons) parts.push(`skipped: ${[...reasons].join('; ')}`);
  return `${place} ${success ? '✔' : '✖'} ${shortName(file)}  ${parts.join(', ')}\n`;
}

function summary({ counts, duration_ms }) {
  const { tests, suites, passed, failed, cancelled, skipped, todo } = counts;
  return { tests, suites, pass: passed, fail: failed, cancelled, skipped, todo, duration_ms };
}
