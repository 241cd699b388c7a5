/** JSON from a server under test: the tests check what they read of it. */
// biome-ignore lint/suspicious/noExplicitAny: the tests look at answers of every shape
export type Json = any;
