/** PostgreSQL's text holds no U+0000. Columns beside the JSON serve look-ups only, where the symbol for it will do. */
export function column(text: string): string {
  return text.includes('\0') ? text.replaceAll('\0', '\u2400') : text;
}
