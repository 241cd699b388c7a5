/** How far into a page its `<meta charset>` is looked for (HTML standard: "prescan a byte stream"). */
const PRESCAN = 1024;

/** A page's text: by its byte order mark, else by its header, else by its `<meta>`, else as what it can be. */
export function decodeHtml(bytes: Uint8Array, contentType: string): string {
  const mark = markedCharset(bytes);
  const said = mark ?? charsetOf(contentType) ?? metaCharset(bytes);
  return decode(bytes, said) ?? asUtf8(bytes) ?? decode(bytes, 'windows-1252') ?? '';
}

function markedCharset(bytes: Uint8Array): string | undefined {
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) return 'utf-8';
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return 'utf-16be';
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return 'utf-16le';
  return undefined;
}

function charsetOf(contentType: string): string | undefined {
  return /;\s*charset\s*=\s*["']?([\w.:-]{1,40})/i.exec(contentType)?.[1];
}

function metaCharset(bytes: Uint8Array): string | undefined {
  const head = Buffer.from(bytes.subarray(0, PRESCAN)).toString('latin1');
  const charset = /<(?:meta\s[^>]*charset|\?xml\s[^>]*encoding)\s*=\s*["']?\s*([\w.:-]{1,40})/i.exec(
    head,
  )?.[1];
  // What could be read as single bytes so far is no UTF-16, whatever it says.
  return charset?.toLowerCase().startsWith('utf-16') ? 'utf-8' : charset;
}

/** Text in UTF-8, when that is what it is: an incomplete character at its end alone is no sign of it. */
function asUtf8(bytes: Uint8Array): string | undefined {
  const text = decode(bytes, 'utf-8', true);
  const isAscii = text?.length === bytes.length;
  return text !== undefined && (isAscii || /[^\0-\x7f]/.test(text)) ? text : undefined;
}

function decode(bytes: Uint8Array, charset: string | undefined, fatal = false): string | undefined {
  if (charset === undefined) return undefined;
  try {
    // A page that was cut off in the middle of a character is still what it says.
    return new TextDecoder(charset, { fatal }).decode(bytes, { stream: true });
  } catch {
    return undefined;
  }
}
