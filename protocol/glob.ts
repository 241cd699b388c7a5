/**
 * Glob-style matching (spec: appendices, "Glob-style matching"). No regular expressions: patterns are others', and
 * must not make matching slow (CVE-2021-29471). Stars are placed greedily from the left and never reconsidered, so
 * a text is gone through once for each part of the pattern at the most. Letter case is the caller's business.
 */
export interface Glob {
  /** The whole text matches. */
  matches(text: string): boolean;
  /** Some substring matches that starts and ends at a word boundary (spec: push rules, `event_match`). */
  matchesWords(text: string): boolean;
  /** Upper bound of the steps that matching a text of that length takes. */
  cost(textLength: number): number;
}

/** What stands between two stars: plain text, or code points with `ANY` among them. */
type Part = string | readonly number[];

const ANY = -1;

/**
 * @param options.questionMark `?` matches exactly one character (the default), or is a character like any other
 */
export function compileGlob(pattern: string, options: { questionMark?: boolean } = {}): Glob {
  const { questionMark = true } = options;
  const parts: Part[] = pattern
    .split('*')
    .map((part) => (questionMark && part.includes('?') ? codePoints(part) : part));
  if (parts.length === 1) return new StarlessGlob(parts[0]!);
  const middle = parts.slice(1, -1).filter((part) => part.length > 0);
  return new StarGlob(parts[0]!, middle, parts.at(-1)!);
}

class StarlessGlob implements Glob {
  readonly #part: Part;

  constructor(part: Part) {
    this.#part = part;
  }

  matches(text: string): boolean {
    if (typeof this.#part === 'string') return text === this.#part;
    return endOfMatch(this.#part, text, 0) === text.length;
  }

  matchesWords(text: string): boolean {
    return findBetweenBoundaries(this.#part, text);
  }

  cost(textLength: number): number {
    return costOf(this.#part, textLength);
  }
}

class StarGlob implements Glob {
  readonly #first: Part;
  readonly #middle: readonly Part[];
  readonly #last: Part;

  constructor(first: Part, middle: readonly Part[], last: Part) {
    this.#first = first;
    this.#middle = middle;
    this.#last = last;
  }

  matches(text: string): boolean {
    const afterFirst = endOfMatch(this.#first, text, 0);
    if (afterFirst < 0) return false;
    const lastStart = startFromEnd(this.#last, text);
    if (lastStart < afterFirst || endOfMatch(this.#last, text, lastStart) !== text.length) return false;
    const afterMiddle = this.#placeMiddle(text, afterFirst);
    return afterMiddle >= 0 && afterMiddle <= lastStart;
  }

  matchesWords(text: string): boolean {
    // The earliest start is as good as any other: the star takes up what lies between.
    let start = find(this.#first, text, 0);
    while (start >= 0 && !isWordBoundary(text, start)) start = find(this.#first, text, start + 1);
    if (start < 0) return false;
    const afterMiddle = this.#placeMiddle(text, endOfMatch(this.#first, text, start));
    if (afterMiddle < 0) return false;
    for (let at = find(this.#last, text, afterMiddle); at >= 0; at = find(this.#last, text, at + 1))
      if (isWordBoundary(text, endOfMatch(this.#last, text, at))) return true;
    return false;
  }

  cost(textLength: number): number {
    let cost = costOf(this.#first, textLength) + costOf(this.#last, textLength);
    for (const part of this.#middle) cost += costOf(part, textLength);
    return cost;
  }

  /** Where the parts between the stars end when each is placed as early as possible; -1 when they don't fit. */
  #placeMiddle(text: string, from: number): number {
    let end = from;
    for (const part of this.#middle) {
      const start = find(part, text, end);
      if (start < 0) return -1;
      end = endOfMatch(part, text, start);
    }
    return end;
  }
}

/**
 * Whether a text stands in another, from one word boundary to another. For names, which are no patterns.
 */
export function containsWords(text: string, words: string): boolean {
  return words !== '' && findBetweenBoundaries(words, text);
}

function findBetweenBoundaries(part: Part, text: string): boolean {
  for (let start = find(part, text, 0); start >= 0; start = find(part, text, start + 1)) {
    if (isWordBoundary(text, start) && isWordBoundary(text, endOfMatch(part, text, start))) return true;
  }
  return false;
}

/** Where the part next matches at or after `from`; -1 when nowhere. */
function find(part: Part, text: string, from: number): number {
  if (from > text.length) return -1;
  if (typeof part === 'string') return text.indexOf(part, from);
  for (let start = from; start < text.length; start++)
    if (!isInsidePair(text, start) && endOfMatch(part, text, start) >= 0) return start;
  return -1;
}

/** Where the part ends when it starts at `start`; -1 when it does not match there. */
function endOfMatch(part: Part, text: string, start: number): number {
  if (typeof part === 'string') return text.startsWith(part, start) ? start + part.length : -1;
  let at = start;
  for (const expected of part) {
    const found = text.codePointAt(at);
    if (found === undefined || (expected !== ANY && expected !== found)) return -1;
    at += found > 0xffff ? 2 : 1;
  }
  return at;
}

/** Where the part would have to start to end with the text; -1 when the text is too short. */
function startFromEnd(part: Part, text: string): number {
  if (typeof part === 'string') return text.length - part.length;
  let at = text.length;
  for (let left = part.length; left > 0; left--) {
    at -= isInsidePair(text, at - 1) ? 2 : 1;
    if (at < 0) return -1;
  }
  return at;
}

/** The start or end of the text, or a place next to a character that is not of a word. */
function isWordBoundary(text: string, at: number): boolean {
  return at === 0 || at === text.length || !isWordCharacter(text, at - 1) || !isWordCharacter(text, at);
}

function isWordCharacter(text: string, at: number): boolean {
  const code = text.charCodeAt(at);
  return (
    (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || (code >= 48 && code <= 57) || code === 95
  );
}

/** Whether a surrogate pair would be cut here. */
function isInsidePair(text: string, at: number): boolean {
  return at > 0 && (text.charCodeAt(at) & 0xfc00) === 0xdc00 && (text.charCodeAt(at - 1) & 0xfc00) === 0xd800;
}

function codePoints(text: string): number[] {
  return Array.from(text, (character) => (character === '?' ? ANY : character.codePointAt(0)!));
}

/** Searching plain text goes at some 16 characters a step of ours. */
function costOf(part: Part, textLength: number): number {
  return typeof part === 'string' ? 1 + (textLength >> 4) : part.length * textLength;
}
