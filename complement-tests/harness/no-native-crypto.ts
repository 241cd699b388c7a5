import { registerHooks } from 'node:module';

const NATIVE = '@matrix-org/matrix-sdk-crypto-nodejs';
const EMPTY = new URL('./empty.cjs', import.meta.url).href;

/**
 * matrix-bot-sdk loads its native crypto library when it is imported, also by bots without encryption; the library
 * fetches its binary by an install script, which npm does not run here. Imported first, this puts an empty module
 * in its place.
 */
registerHooks({
  resolve: (specifier, context, next) =>
    specifier === NATIVE ? { url: EMPTY, format: 'commonjs', shortCircuit: true } : next(specifier, context),
  load: (url, context, next) =>
    url === EMPTY
      ? { format: 'commonjs', source: 'module.exports = {};', shortCircuit: true }
      : next(url, context),
});
