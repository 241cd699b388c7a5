import { Parser } from 'htmlparser2';

/** What a page says about itself (https://ogp.me). */
export interface PagePreview {
  /** The page's `og:` properties, those about pictures, sound and film left out. */
  readonly properties: Readonly<Record<string, string>>;
  /** Where its picture is, as the page has it: maybe relative to the page. */
  readonly image: string | undefined;
}

const MAX_PROPERTIES = 40;
const MAX_NAME = 100;
const MAX_VALUE = 1000;
const MAX_URL = 2048;
const MAX_DESCRIPTION = 500;

/** Elements whose text is not what a page is about. */
const NO_PROSE = new Set([
  'script',
  'style',
  'noscript',
  'template',
  'nav',
  'header',
  'footer',
  'aside',
  'form',
  'svg',
]);
const IMAGES = ['og:image:secure_url', 'og:image', 'og:image:url', 'twitter:image', 'twitter:image:src'];

/** Reads a page without ever having it as a tree: its `<meta>` properties, and what may stand in for missing ones. */
export function readPage(html: string): PagePreview {
  const page = new PageReader();
  const parser = new Parser(
    {
      onopentag: (name, attributes) => page.open(name, attributes),
      onclosetag: (name) => page.close(name),
      ontext: (text) => page.text(text),
    },
    { decodeEntities: true, lowerCaseTags: true, lowerCaseAttributeNames: true },
  );
  parser.end(html);
  return page.result();
}

class PageReader {
  /** The first value of each property and name. */
  readonly #meta = new Map<string, string>();
  #linked: string | undefined;
  #title = '';
  #heading = '';
  #prose = '';
  #inTitle = false;
  #inHeading = false;
  #inParagraph = false;
  /** Depth of `NO_PROSE` elements. */
  #hidden = 0;

  open(name: string, attributes: Record<string, string>): void {
    if (NO_PROSE.has(name)) this.#hidden++;
    else if (name === 'meta') this.#takeMeta(attributes);
    else if (name === 'link' && attributes.rel?.toLowerCase() === 'image_src')
      this.#linked ??= attributes.href;
    else if (name === 'title') this.#inTitle = this.#title === '' && this.#hidden === 0;
    else if (name === 'h1') this.#inHeading = this.#heading === '';
    else if (name === 'p') this.#inParagraph = true;
  }

  close(name: string): void {
    if (NO_PROSE.has(name)) this.#hidden = Math.max(0, this.#hidden - 1);
    else if (name === 'title') this.#inTitle = false;
    else if (name === 'h1') this.#inHeading = false;
    else if (name === 'p') {
      this.#inParagraph = false;
      this.#prose += ' ';
    }
  }

  text(text: string): void {
    if (this.#inTitle && this.#title.length < MAX_VALUE) this.#title += text;
    else if (this.#hidden > 0) return;
    else if (this.#inHeading && this.#heading.length < MAX_VALUE) this.#heading += text;
    else if (this.#inParagraph && this.#prose.length < 4 * MAX_DESCRIPTION) this.#prose += text;
  }

  result(): PagePreview {
    const properties: Record<string, string> = {};
    for (const [name, value] of this.#meta) if (isKept(name)) properties[name] = value;
    const title = this.#first('og:title', 'twitter:title') ?? (clean(this.#title) || clean(this.#heading));
    const description =
      this.#first('og:description', 'twitter:description', 'description') ?? shorten(clean(this.#prose));
    if (title) properties['og:title'] = title;
    if (description) properties['og:description'] = description;
    const image = this.#first(...IMAGES) ?? this.#linked?.trim();
    return { properties, image: image === '' || image?.startsWith('data:') ? undefined : image };
  }

  #takeMeta({ property, name, content }: Record<string, string>): void {
    const key = (property ?? name)?.trim().toLowerCase();
    if (!key || content === undefined || key.length > MAX_NAME || this.#meta.size >= MAX_PROPERTIES) return;
    if (!/^(og:|twitter:|description$)/.test(key) || this.#meta.has(key)) return;
    const value = IMAGES.includes(key) ? content.trim().slice(0, MAX_URL) : clean(content);
    if (value !== '') this.#meta.set(key, value);
  }

  #first(...names: string[]): string | undefined {
    for (const name of names) if (this.#meta.has(name)) return this.#meta.get(name);
    return undefined;
  }
}

/** Clients would load pictures, sound and film from elsewhere, which tells that place who reads what. */
function isKept(name: string): boolean {
  return name.startsWith('og:') && !/^og:(image|video|audio)(:|$)/.test(name);
}

function clean(text: string): string {
  return text
    .slice(0, 4 * MAX_VALUE)
    .replace(/[\s\0]+/g, ' ')
    .trim()
    .slice(0, MAX_VALUE)
    .toWellFormed();
}

/** Cut at the end of a word. */
function shorten(text: string): string {
  if (text.length <= MAX_DESCRIPTION) return text;
  const cut = text.slice(0, MAX_DESCRIPTION);
  const space = cut.lastIndexOf(' ');
  return `${(space > MAX_DESCRIPTION / 2 ? cut.slice(0, space) : cut).toWellFormed()}…`;
}
