/** Words of one text that are looked at, and characters of one word. */
const MAX_WORDS = 1_000;
const MAX_WORD_LENGTH = 40;
const MAX_TEXT_LENGTH = 32_768;

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
/**
 * Scripts whose words no space divides, or to whose words endings are attached. A dictionary divides a text otherwise
 * than a search term out of it, so that these are cut into single characters and pairs of them.
 */
const UNSPACED =
  /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}\p{scx=Tibetan}]+/gu;

/** What a text is found by: its words, folded by case and width, cut at what is neither letter nor digit. */
export function wordsOf(text: string): string[] {
  const words: string[] = [];
  for (const run of runsOf(text)) {
    for (const word of run.unspaced ? [...run.text, ...pairs(run.text)] : [run.text]) {
      words.push(word.slice(0, MAX_WORD_LENGTH));
      if (words.length === MAX_WORDS) return words;
    }
  }
  return words;
}

/** What a search term looks for: `words` are all among those of a text that has it, `highlights` are for people. */
export function searchTermsOf(term: string): { readonly words: string[]; readonly highlights: string[] } {
  const runs = [...runsOf(term)];
  const words = runs.flatMap(({ text, unspaced }) =>
    unspaced && [...text].length > 1 ? pairs(text) : [text.slice(0, MAX_WORD_LENGTH)],
  );
  return { words: [...new Set(words)], highlights: [...new Set(runs.map(({ text }) => text))] };
}

interface Run {
  readonly text: string;
  readonly unspaced: boolean;
}

function* runsOf(text: string): Generator<Run> {
  const folded = text.slice(0, MAX_TEXT_LENGTH).normalize('NFKC').toLowerCase();
  for (const [word] of folded.matchAll(WORD)) {
    let from = 0;
    for (const { 0: unspaced, index } of word.matchAll(UNSPACED)) {
      if (index > from) yield { text: word.slice(from, index), unspaced: false };
      yield { text: unspaced, unspaced: true };
      from = index + unspaced.length;
    }
    if (from < word.length) yield { text: word.slice(from), unspaced: false };
  }
}

function pairs(text: string): string[] {
  const characters = [...text];
  return characters.slice(1).map((character, i) => characters[i]! + character);
}
