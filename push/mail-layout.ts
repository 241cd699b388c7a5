/** Text as HTML shows it. Everything that is put into a mail passes here. */
export function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
}

/** The frame of every mail in HTML; plain enough for every mail program. */
export function mailPage(title: string, body: string, footer: string): string {
  return `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escapeHtml(title)}</title></head>
<body style="margin:0;padding:24px;background:#f4f5f7;font:16px/1.5 system-ui,sans-serif;color:#17191c">
<div style="max-width:560px;margin:0 auto;padding:24px;background:#fff;border-radius:8px">
<h1 style="margin:0 0 16px;font-size:20px">${escapeHtml(title)}</h1>
${body}
</div>
<p style="max-width:560px;margin:16px auto;font-size:13px;color:#656d77">${footer}</p>
</body>
</html>
`;
}

export function mailButton(url: string, label: string): string {
  const style =
    'display:inline-block;padding:10px 20px;background:#0b6bcb;color:#fff;border-radius:6px;text-decoration:none';
  return `<p><a href="${escapeHtml(url)}" style="${style}">${escapeHtml(label)}</a></p>`;
}

/** One line of a subject: what users write may have line breaks and be long. */
export function subjectLine(text: string): string {
  const line = text.replace(/[\p{Cc}\p{Cf}\s]+/gu, ' ').trim();
  return line.length > 120 ? `${line.slice(0, 119)}…`.toWellFormed() : line;
}
