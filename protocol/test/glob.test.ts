import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { compileGlob, containsWords } from '../glob.ts';

/** By the definition, trying everything. */
function naiveMatch(pattern: string[], text: string[]): boolean {
  if (pattern.length === 0) return text.length === 0;
  const [head, ...rest] = pattern;
  if (head === '*') {
    for (let i = 0; i <= text.length; i++) if (naiveMatch(rest, text.slice(i))) return true;
    return false;
  }
  return text.length > 0 && (head === '?' || head === text[0]) && naiveMatch(rest, text.slice(1));
}

function naiveMatchWords(pattern: string[], text: string[]): boolean {
  const isWord = (character: string | undefined) =>
    character !== undefined && /^[A-Za-z0-9_]$/.test(character);
  const isBoundary = (at: number) =>
    at === 0 || at === text.length || !isWord(text[at - 1]) || !isWord(text[at]);
  for (let start = 0; start <= text.length; start++)
    for (let end = start; end <= text.length; end++)
      if (isBoundary(start) && isBoundary(end) && naiveMatch(pattern, text.slice(start, end))) return true;
  return false;
}

const character = fc.constantFrom('a', 'b', ' ', '-', '\u{1f600}', '\u{1f601}');
const texts = fc.array(character, { maxLength: 10 });
const patterns = fc.array(fc.oneof({ weight: 3, arbitrary: character }, fc.constantFrom('*', '?')), {
  maxLength: 7,
});

describe('globs', () => {
  it('match as a naive matcher does', () => {
    fc.assert(
      fc.property(patterns, texts, (pattern, text) => {
        assert.equal(compileGlob(pattern.join('')).matches(text.join('')), naiveMatch(pattern, text));
      }),
      { numRuns: 3000 },
    );
  });

  it('match words as a naive matcher does', () => {
    fc.assert(
      fc.property(patterns, texts, (pattern, text) => {
        assert.equal(
          compileGlob(pattern.join('')).matchesWords(text.join('')),
          naiveMatchWords(pattern, text),
        );
      }),
      { numRuns: 3000 },
    );
  });

  it('match the examples of the spec', () => {
    const lunch = compileGlob('lunc?*');
    assert.ok(lunch.matches('lunch plans'));
    assert.ok(lunch.matches('lunch'));
    assert.ok(!lunch.matches(' lunch'));
    assert.ok(!lunch.matches('lunc'));
    const example = compileGlob('ex*ple');
    assert.ok(example.matchesWords('an example event.'));
    assert.ok(example.matchesWords('exple'));
    assert.ok(example.matchesWords('an exciting triple-whammy'));
    assert.ok(!example.matchesWords('an examples'));
  });

  it('can take a question mark for what it is', () => {
    assert.ok(compileGlob('a?*', { questionMark: false }).matches('a?b'));
    assert.ok(!compileGlob('a?*', { questionMark: false }).matches('abb'));
  });

  it('take bounded time for patterns made to be slow', () => {
    const text = 'a'.repeat(60_000);
    const started = performance.now();
    for (const pattern of [
      `${'a*'.repeat(200)}b`,
      `${'*a'.repeat(200)}b`,
      `${'a'.repeat(500)}b`,
      `*${'?a'.repeat(10)}b*`,
    ]) {
      assert.ok(!compileGlob(pattern).matches(text));
      assert.ok(!compileGlob(pattern).matchesWords(text));
    }
    assert.ok(performance.now() - started < 2_000);
  });

  it('finds names between word boundaries', () => {
    assert.ok(containsWords('hi alice!', 'alice'));
    assert.ok(containsWords('hi (a*c)', 'a*c'));
    assert.ok(!containsWords('malice', 'alice'));
    assert.ok(!containsWords('anything', ''));
  });
});
