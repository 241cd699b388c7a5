/** Types that browsers show without running anything (spec: "Serving inline content"). */
const INLINE_TYPES = new Set([
  'text/css',
  'text/plain',
  'text/csv',
  'application/json',
  'application/ld+json',
  'image/jpeg',
  'image/gif',
  'image/png',
  'image/apng',
  'image/webp',
  'image/avif',
  'video/mp4',
  'video/webm',
  'video/ogg',
  'video/quicktime',
  'audio/mp4',
  'audio/webm',
  'audio/aac',
  'audio/mpeg',
  'audio/ogg',
  'audio/wave',
  'audio/wav',
  'audio/x-wav',
  'audio/x-pn-wav',
  'audio/flac',
  'audio/x-flac',
]);

const MAX_FILENAME = 255;

/** `Content-Disposition` for media: inline only for types that cannot hurt. */
export function contentDisposition(contentType: string, filename: string | null | undefined): string {
  const essence = contentType.split(';', 1)[0]!.trim().toLowerCase();
  // Browsers take a header with a comma for several, and the last of them for the type.
  const disposition = INLINE_TYPES.has(essence) && !contentType.includes(',') ? 'inline' : 'attachment';
  if (!filename) return disposition;
  if (/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(filename)) return `${disposition}; filename=${filename}`;
  if (/^[\x20-\x7e]*$/.test(filename))
    return `${disposition}; filename="${filename.replace(/["\\]/g, (character) => `\\${character}`)}"`;
  const encoded = encodeURIComponent(filename).replace(
    /['()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return `${disposition}; filename*=utf-8''${encoded}`;
}

/** A file name as it is kept: without control characters, well formed, of bounded length; `null` when none is left. */
export function cleanFilename(filename: string | undefined): string | null {
  if (filename === undefined) return null;
  const clean = filename.toWellFormed().replace(/[\p{Cc}\u2028\u2029]/gu, '');
  return clean === '' ? null : [...clean].slice(0, MAX_FILENAME).join('');
}

/** The file name in another server's `Content-Disposition` (RFC 6266), `null` when it says none. */
export function filenameOf(header: string | undefined): string | null {
  if (header === undefined || header.length > 4096) return null;
  const extended = /;\s*filename\*\s*=\s*utf-8'[^']*'([^\s;]+)/i.exec(header);
  if (extended) {
    try {
      return cleanFilename(decodeURIComponent(extended[1]!));
    } catch {
      // Not UTF-8 after all; the plain parameter may be there too.
    }
  }
  const quoted = /;\s*filename\s*=\s*"((?:[^"\\]|\\.)*)"/i.exec(header);
  // Node reads headers as latin1; servers that send UTF-8 as it is mean UTF-8.
  if (quoted) return cleanFilename(fromLatin1(quoted[1]!.replace(/\\(.)/g, '$1')));
  const token = /;\s*filename\s*=\s*([^\s;"]+)/i.exec(header);
  return token ? cleanFilename(fromLatin1(token[1]!)) : null;
}

function fromLatin1(text: string): string {
  if (/^[\x20-\x7e]*$/.test(text)) return text;
  const bytes = Buffer.from(text, 'latin1');
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return text;
  }
}

/** A content type that can be sent back as a header; anything else is bytes without meaning. */
export function cleanContentType(header: string | undefined): string {
  if (header === undefined || header.length > 255) return 'application/octet-stream';
  return /^[!#$&^_.+\-0-9A-Za-z]+\/[!#$&^_.+\-0-9A-Za-z]+[ \t]*(;[\x20-\x2b\x2d-\x7e]*)?$/.test(header)
    ? header
    : 'application/octet-stream';
}
