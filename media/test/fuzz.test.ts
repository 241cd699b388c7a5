import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mangled, timed, withinBudget } from '@trellis/protocol/test/fuzzing.ts';
import fc from 'fast-check';
import { cleanContentType, contentDisposition, filenameOf } from '../content-disposition.ts';

test('headers of media in any form are read, and written so that they stay one header', () => {
  const header = fc
    .tuple(fc.constantFrom('inline', 'attachment', ''), fc.string(), fc.string())
    .map(([kind, name, other]) => `${kind}; filename="${name}"; filename*=utf-8''${other}`);
  fc.assert(
    fc.property(
      mangled(header),
      mangled(fc.constantFrom('text/html', 'image/png; a=b', '')),
      (text, type) => {
        const name = timed(() => filenameOf(text));
        const clean = timed(() => cleanContentType(type));
        assert.ok(/^[\t\x20-\x7e]*$/.test(clean), JSON.stringify(clean));
        const written = timed(() => contentDisposition(clean, name));
        assert.ok(/^[\x20-\x7e]*$/.test(written), written);
        assert.ok(!/^inline/.test(written) || !/html|svg|xml/.test(clean.split(';', 1)[0]!));
      },
    ),
    withinBudget(0.7),
  );
});
