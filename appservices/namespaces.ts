export interface Namespace {
  /** Nobody else may have what is in it. */
  readonly exclusive: boolean;
  readonly regex: string;
}

/** One kind of namespaces of an application service: of users, room aliases or rooms. */
export class Namespaces {
  readonly #all: RegExp[];
  readonly #exclusive: RegExp[];

  /** @throws SyntaxError for what is no regular expression */
  constructor(namespaces: readonly Namespace[]) {
    this.#all = namespaces.map(({ regex }) => compile(regex));
    this.#exclusive = this.#all.filter((_, i) => namespaces[i]!.exclusive);
  }

  get isEmpty(): boolean {
    return this.#all.length === 0;
  }

  includes(id: string): boolean {
    return this.#all.some((regex) => regex.test(id));
  }

  reserves(id: string): boolean {
    return this.#exclusive.some((regex) => regex.test(id));
  }
}

/** Bound to the beginning of an identifier but not to its end: so other servers take them, and bridges rely on it. */
export function compile(regex: string): RegExp {
  return new RegExp(`^(?:${regex})`);
}
