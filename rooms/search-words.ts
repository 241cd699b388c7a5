/** Words of one text that are looked at, and characters of one word. */
const MAX_WORDS = 1_000;
const MAX_WORD_LENGTH = 40;
const MAX_TEXT_LENGTH = 32_768;

const segmenter = new Intl.Segmenter('und', { granularity: 'word' });

/**
 * The words that a text is found by: folded by case and width, as Unicode divides it (languages without spaces by
 * ICU's dictionaries), cut at what is neither letter nor digit.
 */
export function wordsOf(text: string): string[] {
  const folded = text.slice(0, MAX_TEXT_LENGTH).normalize('NFKC').toLowerCase();
  const words: string[] = [];
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the test is for ASCII, all of it
  const parts = /^[\x00-\x7f]*$/.test(folded) ? [folded] : segmentsOf(folded);
  for (const part of parts)
    for (const word of part.match(/[\p{L}\p{N}\p{M}]+/gu) ?? []) {
      words.push(word.slice(0, MAX_WORD_LENGTH));
      if (words.length === MAX_WORDS) return words;
    }
  return words;
}

function* segmentsOf(text: string): Generator<string> {
  for (const { segment, isWordLike } of segmenter.segment(text)) if (isWordLike) yield segment;
}
