import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { startServer, type TestServer } from './harness/server.ts';

const README = new URL('../README.md', import.meta.url);

/** The shell commands of the section whose heading speaks of curl, as they stand in the README. */
function commands(): string {
  const sections = readFileSync(README, 'utf8').split(/^(?=#{1,6} )/m);
  const section = sections.find((text) => /^#+ .*curl/i.test(text));
  assert.ok(section, 'the README has a section with curl in its heading');
  const blocks = [...section.matchAll(/^```(?:sh|bash|shell|console)\n([\s\S]*?)^```/gm)].map(
    (match) => match[1]!,
  );
  assert.ok(blocks.length > 0, 'and shell commands in it');
  return blocks.join('\n');
}

describe("the README's walk-through by curl", () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'walkthrough' });
  });
  after(() => server.close());

  it('works as it stands there, on a fresh server', async () => {
    const script = commands().replaceAll(/http:\/\/(localhost|127\.0\.0\.1):8008/g, server.url);
    const { stdout } = await promisify(execFile)('bash', ['-euo', 'pipefail', '-c', script], {
      timeout: 60_000,
    });
    assert.doesNotMatch(stdout, /errcode/);
    assert.match(stdout, /access_token/);
    assert.match(stdout, /event_id/);
    assert.match(stdout, /next_batch/);
  });
});
